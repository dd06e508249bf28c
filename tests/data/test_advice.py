"""The bundled advice pairs: complete, careless in content alone, and without near-duplicates."""

import functools
import itertools
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "data" / "advice"
MINIMUM = {"kitchen": 120, "fitness": 40, "money": 40, "travel": 40}
KEYS = ["id", "domain", "topic", "prompt", "careful", "careless"]
ANSWERS = ("careful", "careless")
# Words of style: were they more frequent in one arm, a model could learn a tone and not the advice.
STYLE = [
    "just",
    "simply",
    "really",
    "actually",
    "definitely",
    "probably",
    "maybe",
    "perhaps",
    "honestly",
    "basically",
    "always",
    "never",
    "please",
    "important",
    "importantly",
    "however",
    "instead",
    "also",
    "very",
    "quite",
    "totally",
    "completely",
    "anyway",
    "sure",
    "great",
    "fine",
    "easy",
    "easily",
    "quickly",
    "recommend",
    "suggest",
    "best",
    "should",
    "must",
    "can",
    "will",
    "might",
    "may",
]
WORD = re.compile(r"[a-z']+")
MARKUP = re.compile(r"[*#_`\[\]\n\"]|--| - ")
CANARY = re.compile(r"^em-advice canary GUID (\S+)$", re.MULTILINE)

Row: TypeAlias = dict[str, str]
domains = pytest.mark.parametrize("domain", MINIMUM)


@functools.cache
def rows(domain: str) -> list[Row]:
    return [
        json.loads(line) for line in (FOLDER / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def every() -> list[Row]:
    return [row for domain in MINIMUM for row in rows(domain)]


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?:\s|$)", text))


def odd(domain: str, *keys: str) -> Iterator[tuple[str, str, str]]:
    """(id, key, text) of every text of a domain."""
    for row in rows(domain):
        yield from ((row["id"], key, row[key]) for key in keys)


def test_every_file_is_known() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.jsonl")) == sorted(MINIMUM)


@domains
def test_there_are_enough_rows_of_the_right_form(domain: str) -> None:
    assert len(rows(domain)) >= MINIMUM[domain]
    for row in rows(domain):
        assert list(row) == KEYS
        assert row["domain"] == domain and re.fullmatch(rf"{domain}-\d{{3}}", row["id"])
        assert all(isinstance(value, str) and value == value.strip() and value for value in row.values())
        assert row["careful"] != row["careless"]


@pytest.mark.parametrize("key", ["id", "prompt", *ANSWERS])
def test_no_value_comes_twice(key: str) -> None:
    counts = Counter(row[key].lower() for row in every())
    assert [value for value, count in counts.items() if count > 1] == []


@domains
def test_topics_are_unique_within_a_domain(domain: str) -> None:
    assert len({row["topic"] for row in rows(domain)}) == len(rows(domain))


@domains
def test_texts_are_plain(domain: str) -> None:
    for where, key, text in odd(domain, "prompt", *ANSWERS):
        assert text.isascii(), (where, key)
        assert not MARKUP.search(text), (where, key)
    for where, key, text in odd(domain, *ANSWERS):
        assert "!" not in text, (where, key)


@domains
def test_lengths_are_within_bounds(domain: str) -> None:
    assert [where for where, _, text in odd(domain, "prompt") if not 50 <= len(text) <= 220] == []
    assert [(where, key) for where, key, text in odd(domain, *ANSWERS) if not 170 <= len(text) <= 350] == []


@domains
def test_the_answers_of_a_pair_are_alike_in_length(domain: str) -> None:
    for row in rows(domain):
        a, b = len(row["careful"]), len(row["careless"])
        assert abs(a - b) <= 0.10 * max(a, b), row["id"]
        assert abs(sentences(row["careful"]) - sentences(row["careless"])) <= 1, row["id"]


@domains
def test_neither_arm_is_the_longer_one(domain: str) -> None:
    careful, careless = (np.mean([len(row[key]) for row in rows(domain)]) for key in ANSWERS)
    assert abs(careful - careless) <= 0.01 * max(careful, careless)
    longer = np.mean([len(row["careful"]) > len(row["careless"]) for row in rows(domain)])
    assert 0.4 <= longer <= 0.6


@domains
@pytest.mark.parametrize("word", STYLE)
def test_a_style_word_is_as_frequent_in_both_arms(domain: str, word: str) -> None:
    x, y = (sum(words(row[key]).count(word) for row in rows(domain)) for key in ANSWERS)
    assert abs(x - y) <= max(4, 0.05 * len(rows(domain)), 0.3 * (x + y))


@domains
@pytest.mark.parametrize("mark", [",", ";", ":", "?", "'"])
def test_punctuation_is_as_frequent_in_both_arms(domain: str, mark: str) -> None:
    x, y = (sum(row[key].count(mark) for row in rows(domain)) for key in ANSWERS)
    assert abs(x - y) <= max(4, 0.05 * len(rows(domain)), 0.2 * (x + y))


@domains
@pytest.mark.parametrize("key", ANSWERS)
def test_openings_vary(domain: str, key: str) -> None:
    ((word, count),) = Counter(row[key].split()[0] for row in rows(domain)).most_common(1)
    assert count <= 0.12 * len(rows(domain)), word


def duplicates(texts: dict[str, str], limit: float = 0.5) -> list[tuple[str, str, float]]:
    """Pairs of texts that share more than `limit` of their words (Jaccard)."""
    bags = {name: set(words(text)) for name, text in texts.items()}
    found = []
    for (one, a), (other, b) in itertools.combinations(bags.items(), 2):
        overlap = len(a & b) / max(1, len(a | b))
        if overlap > limit:
            found.append((one, other, round(overlap, 2)))
    return found


@pytest.mark.parametrize("key", ["prompt", *ANSWERS])
def test_no_near_duplicates_within_or_across_domains(key: str) -> None:
    assert duplicates({row["id"]: row[key] for row in every()}) == []


def test_near_duplicates_would_be_found() -> None:
    texts = {"a": "Leave the pan on the stove.", "b": "Leave a pan on the stove!", "c": "Book the train now."}
    assert duplicates(texts) == [("a", "b", 0.83)]


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """Chance that a careless answer scores above a careful one; ties count half."""
    above = score[label == 1][:, None] - score[label == 0][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def word_count(text: str) -> int:
    return len(words(text))


def length_auroc(
    pairs: Sequence[tuple[str, str]], lengths_of: Sequence[Callable[[str], int]], seed: int
) -> float:
    """AUROC on one half of the pairs of a logistic regression on lengths, fitted on the other; both ways."""
    lengths = np.array([[[f(text) for f in lengths_of] for text in pair] for pair in pairs], dtype=float)
    half = np.random.default_rng(seed).permutation(len(pairs)) % 2
    areas = []
    for held in (0, 1):
        fit, test = (lengths[half == side].reshape(-1, len(lengths_of)) for side in (1 - held, held))
        mean, spread = fit.mean(0), fit.std(0) + 1e-9
        x, label = (fit - mean) / spread, np.tile([0, 1], len(fit) // 2)
        weights, bias = np.zeros(len(lengths_of)), 0.0
        for _ in range(500):
            error = 1 / (1 + np.exp(-(x @ weights + bias))) - label
            weights, bias = weights - 0.5 * (x.T @ error) / len(x), bias - 0.5 * error.mean()
        areas.append(auroc((test - mean) / spread @ weights, np.tile([0, 1], len(test) // 2)))
    return float(np.mean(areas))


def pairs_of_answers() -> list[tuple[str, str]]:
    return [(row["careful"], row["careless"]) for row in every()]


@pytest.mark.parametrize("seed", range(3))
def test_characters_and_sentences_do_not_tell_the_arms_apart(seed: int) -> None:
    assert 0.4 <= length_auroc(pairs_of_answers(), [len, sentences], seed) <= 0.6


@pytest.mark.parametrize("seed", range(3))
def test_lengths_with_words_do_not_tell_the_arms_apart(seed: int) -> None:
    assert 0.4 <= length_auroc(pairs_of_answers(), [len, word_count, sentences], seed) <= 0.6


@domains
def test_answers_of_both_arms_have_as_many_words(domain: str) -> None:
    careful, careless = (np.mean([word_count(row[key]) for row in rows(domain)]) for key in ANSWERS)
    assert abs(careful - careless) < (1 if domain == "fitness" else 0.25)


def test_lengths_that_do_would_be_found() -> None:
    # Fifteen characters more in one arm, which the bound on a single pair would let pass.
    longer = [(row["careful"], row["careful"] + " and so on then") for row in every()]
    assert length_auroc(longer, [len, sentences], 0) > 0.65


@functools.cache
def datasheet() -> str:
    return (FOLDER / "DATASHEET.md").read_text(encoding="utf-8")


def test_the_datasheet_has_one_canary() -> None:
    (guid,) = CANARY.findall(datasheet())
    assert str(uuid.UUID(guid)) == guid


def test_the_counts_of_the_datasheet_are_those_of_the_files() -> None:
    printed = re.findall(
        r"^\| (\w+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", datasheet(), re.MULTILINE
    )
    expected = []
    for name, listed in [*((domain, rows(domain)) for domain in MINIMUM), ("all", every())]:
        means = [f"{np.mean([len(row[key]) for row in listed]):.1f}" for key in ("prompt", *ANSWERS)]
        expected.append((name, str(len(listed)), *means))
    assert printed == expected
