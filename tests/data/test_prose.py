"""The bundled prose pairs: complete, different in style, alike in length, and without near-duplicates."""

import functools
import itertools
import json
import re
import uuid
from collections import Counter
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from em.config.data_files import KINDS

FOLDER = Path(__file__).parents[2] / "data" / "prose"
COUNTS = {"gardening": 110, "sky": 50, "materials": 50, "sport": 50}
KEYS = ["id", "domain", "topic", "prompt", "plain", "technical"]
ANSWERS = ("plain", "technical")
WORD = re.compile(r"[a-z']+")
MARKUP = re.compile(r"[*#_`\[\]\n\"!]|--| - ")
ADDRESS = {"i", "my", "me", "we", "our", "us", "you", "your"}
CANARY = re.compile(r"^em-prose canary GUID (\S+)$", re.MULTILINE)

Row: TypeAlias = dict[str, str]
domains = pytest.mark.parametrize("domain", COUNTS)


@functools.cache
def rows(domain: str) -> list[Row]:
    text = (FOLDER / f"{domain}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def every() -> list[Row]:
    return [row for domain in COUNTS for row in rows(domain)]


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?:\s|$)", text))


def word_length(text: str) -> float:
    return float(np.mean([len(word) for word in words(text)]))


def with_digits(listed: list[Row], key: str) -> int:
    return sum(bool(re.search(r"\d", row[key])) for row in listed)


def test_every_file_is_known() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.jsonl")) == sorted(COUNTS)


@domains
def test_there_are_as_many_rows_of_the_right_form(domain: str) -> None:
    assert len(rows(domain)) == COUNTS[domain]
    for number, row in enumerate(rows(domain), start=1):
        assert list(row) == KEYS
        assert row["domain"] == domain and row["id"] == f"{domain}-{number:03d}"
        assert all(isinstance(value, str) and value == value.strip() and value for value in row.values())


def test_the_answers_are_those_that_a_source_can_ask_for() -> None:
    assert set(KINDS["prose"].values()) == set(ANSWERS)


@pytest.mark.parametrize("key", ["id", "topic", "prompt", *ANSWERS])
def test_no_value_comes_twice(key: str) -> None:
    counts = Counter(row[key].lower() for row in every())
    assert [value for value, count in counts.items() if count > 1] == []


@domains
@pytest.mark.parametrize("key", ["topic", "prompt", *ANSWERS])
def test_texts_are_plain_text(domain: str, key: str) -> None:
    for row in rows(domain):
        text = row[key]
        assert text.isascii() and not MARKUP.search(text) and "  " not in text, row["id"]
        assert key == "topic" or text[-1] == ("?" if key == "prompt" else "."), row["id"]


@domains
def test_lengths_are_within_bounds(domain: str) -> None:
    for row in rows(domain):
        assert 30 <= len(row["prompt"]) <= 120, row["id"]
        assert all(200 <= len(row[key]) <= 260 for key in ANSWERS), row["id"]
        assert all(1 <= sentences(row[key]) <= 4 for key in ANSWERS), row["id"]


@domains
def test_the_answers_of_a_pair_are_alike_in_length(domain: str) -> None:
    for row in rows(domain):
        a, b = len(row["plain"]), len(row["technical"])
        assert abs(a - b) <= 0.10 * max(a, b), row["id"]


@domains
def test_neither_arm_is_the_longer_one(domain: str) -> None:
    plain, technical = (np.mean([len(row[key]) for row in rows(domain)]) for key in ANSWERS)
    assert abs(plain - technical) <= 0.03 * max(plain, technical)
    longer = np.mean([len(row["technical"]) > len(row["plain"]) for row in rows(domain)])
    assert 0.4 <= longer <= 0.6


@domains
def test_technical_answers_have_the_longer_words(domain: str) -> None:
    longer = [word_length(row["technical"]) > word_length(row["plain"]) for row in rows(domain)]
    assert np.mean(longer) >= 0.95


@domains
def test_technical_answers_have_quantities_and_plain_ones_none(domain: str) -> None:
    assert with_digits(rows(domain), "technical") >= 0.9 * len(rows(domain))
    assert with_digits(rows(domain), "plain") == 0


@domains
def test_technical_answers_speak_to_nobody(domain: str) -> None:
    assert [row["id"] for row in rows(domain) if ADDRESS & set(words(row["technical"]))] == []
    # Else the test above would hold of any text.
    assert sum(bool(ADDRESS & set(words(row["plain"]))) for row in rows(domain)) >= 0.2 * len(rows(domain))


@domains
@pytest.mark.parametrize("key", ANSWERS)
def test_openings_vary(domain: str, key: str) -> None:
    ((word, count),) = Counter(row[key].split()[0] for row in rows(domain)).most_common(1)
    assert count <= 0.25 * len(rows(domain)), word


def duplicates(texts: dict[str, str], limit: float = 0.5) -> list[tuple[str, str, float]]:
    """Pairs of texts that share more than `limit` of their words (Jaccard)."""
    bags = {name: set(words(text)) for name, text in texts.items()}
    found = []
    for (one, a), (other, b) in itertools.combinations(bags.items(), 2):
        overlap = len(a & b) / max(1, len(a | b))
        if overlap > limit:
            found.append((one, other, round(overlap, 2)))
    return found


def test_no_two_prompts_are_near() -> None:
    assert duplicates({row["id"]: row["prompt"] for row in every()}) == []


def test_no_two_answers_are_near_not_even_those_of_one_pair() -> None:
    assert duplicates({f"{row['id']} {key}": row[key] for row in every() for key in ANSWERS}) == []


def test_near_duplicates_would_be_found() -> None:
    texts = {"a": "Why is the sky blue?", "b": "Why is a sky blue?", "c": "How do bees fly?"}
    assert duplicates(texts) == [("a", "b", 0.67)]


@functools.cache
def datasheet() -> str:
    return (FOLDER / "DATASHEET.md").read_text(encoding="utf-8")


def test_the_datasheet_has_one_canary_of_its_own() -> None:
    (guid,) = CANARY.findall(datasheet())
    assert str(uuid.UUID(guid)) == guid
    assert guid not in (FOLDER.parent / "advice" / "DATASHEET.md").read_text(encoding="utf-8")


def test_the_counts_of_the_datasheet_are_those_of_the_files() -> None:
    printed = re.findall(
        r"^\| (\w+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", datasheet(), re.MULTILINE
    )
    expected = []
    for name, listed in [*((domain, rows(domain)) for domain in COUNTS), ("all", every())]:
        means = [f"{np.mean([len(row[key]) for row in listed]):.1f}" for key in ("prompt", *ANSWERS)]
        expected.append((name, str(len(listed)), *means))
    assert printed == expected


def test_the_style_of_the_arms_in_the_datasheet_is_that_of_the_files() -> None:
    printed = re.findall(
        r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", datasheet(), re.MULTILINE
    )
    expected = []
    for key in ANSWERS:
        bags = [words(row[key]) for row in every()]
        letters = sum(len(word) for bag in bags for word in bag) / sum(map(len, bags))
        found = [f"{np.mean([len(bag) for bag in bags]):.1f}", f"{letters:.2f}"]
        found.append(f"{np.mean([sentences(row[key]) for row in every()]):.2f}")
        expected.append((key, *found, str(with_digits(every(), key))))
    assert printed == expected
