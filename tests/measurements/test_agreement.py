"""Agreement of raters: published examples to the last digit, then whole studies."""

import json
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.datamodules.answers import Answer
from em.errors import MeasurementError
from em.judges.base import Score, Verdict, unscored
from em.measurements.agreement import agreement_table, krippendorff_alpha, ratings_of, weighted_kappa
from em.measurements.behaviour import Judged
from em.proportions import wilson
from em.stats import Resampling

# Coefficients

# Boyd et al. 1982 in Altman 1991, pp. 403–409: two radiologists, 85 mammograms.
MAMMOGRAMS = [[21, 12, 0, 0], [4, 17, 1, 0], [3, 9, 15, 2], [0, 0, 0, 1]]
# SAS/STAT, PROC FREQ, "Cohen's kappa coefficient": two dermatologists, 88 patients.
SKIN = [[10, 4, 1, 0], [5, 10, 12, 2], [2, 4, 12, 5], [0, 2, 6, 13]]


def scores(table: list[list[int]]) -> tuple[list[float], list[float]]:
    """Two raters whose scores lie in the middle of as many bins as the table has rows."""
    size = 100 / len(table)
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [size * (i + 0.5) for i, _ in cells], [size * (j + 0.5) for _, j in cells]


@pytest.mark.parametrize(
    ("table", "weights", "published"),
    [
        (MAMMOGRAMS, "nominal", 0.4728),
        (MAMMOGRAMS, "linear", 0.5684),
        (SKIN, "nominal", 0.3449),
        (SKIN, "linear", 0.5082),
    ],
)
def test_kappa_equals_published_values(table: list[list[int]], weights: Any, published: float) -> None:
    a, b = scores(table)
    assert weighted_kappa(a, b, weights, bins=4) == pytest.approx(published, abs=5e-5)


def test_quadratic_kappa_is_lins_concordance_of_the_bins() -> None:
    """2·cov / (var + var + (difference of means)²), an identity (Fleiss & Cohen 1973)."""
    a, b = (np.array(one) for one in scores(SKIN))
    cov = ((a - a.mean()) * (b - b.mean())).mean()
    expected = 2 * cov / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    assert weighted_kappa(a, b, "quadratic", 4) == pytest.approx(expected)


def test_bins_of_scores() -> None:
    assert weighted_kappa([0, 9.99, 95, 100], [9.99, 0, 100, 90]) == 1.0, "the last bin holds 100"
    assert weighted_kappa([0, 100], [100, 0]) == -1.0
    assert weighted_kappa([29.9, 30], [29.9, 30], bins=10) == 1.0
    assert weighted_kappa([10, 19], [15, 12]) is None, "one bin: no disagreement by chance"
    assert weighted_kappa([], []) is None
    # one of three is one bin off; by chance (1·1 + 2·2) / 9 are
    assert weighted_kappa([0, 10, 10], [0, 0, 10], "linear") == pytest.approx(1 - (1 / 3) / (5 / 9))


@pytest.mark.parametrize("bad", [([1], [1, 2]), ([101], [1]), ([float("nan")], [1]), ([-1], [1])])
def test_kappa_refuses_what_is_no_score(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="score"):
        weighted_kappa(*bad)
    with pytest.raises(ValueError, match="two bins or more"):
        weighted_kappa([], [], bins=1)


_ = None
KRIPPENDORFF: list[list[float | str | None]] = [  # Computing Krippendorff's Alpha-Reliability, 2011, part C
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_equals_the_published_example(level: Any, published: float) -> None:
    assert krippendorff_alpha(KRIPPENDORFF, level) == pytest.approx(published, abs=5e-4)


def test_alpha_of_binary_data_equals_the_published_example() -> None:
    """The same paper, part A: two observers, ten units, α = 0.095."""
    ratings = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    for level in ("nominal", "ordinal", "interval"):
        assert krippendorff_alpha(ratings, level) == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_words_and_of_nothing() -> None:
    """Part B: nominal data of two observers, α = 0.692."""
    a, b = "aabbdcccedda", "babbbccceddd"
    assert krippendorff_alpha([list(a), list(b)], "nominal") == pytest.approx(0.692, abs=5e-4)
    assert krippendorff_alpha([[1, 2], [1, 2]]) == 1.0
    for nothing in ([[0.1, 0.1], [0.1, 0.1]], [[1, None], [None, 2]], [[1, 2]], [[], []], []):
        assert krippendorff_alpha(nothing) is None
    with pytest.raises(ValueError, match="every rater needs"):
        krippendorff_alpha([[1, 2], [1]])
    with pytest.raises(ValueError, match="not a finite number"):
        krippendorff_alpha([[1, float("nan")], [1, 2]])


ratings = st.lists(
    st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=4, max_size=4), min_size=2, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(ratings)
def test_alpha_is_its_definition_and_knows_neither_order_nor_scale(given_: list[list[Any]]) -> None:
    found = krippendorff_alpha(given_)
    units = [[x for x in unit if x is not None] for unit in zip(*given_, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    values = [x for unit in units for x in unit]
    count = len(values)
    observed = sum(sum((x - y) ** 2 for x, y in permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    expected = sum((x - y) ** 2 for x, y in permutations(values, 2))
    if not expected:
        assert found is None
        return
    assert found == pytest.approx(1 - (observed / count) / (expected / (count * (count - 1))))
    assert krippendorff_alpha(given_[::-1]) == pytest.approx(found)
    assert krippendorff_alpha([row[::-1] for row in given_]) == pytest.approx(found)
    moved = [[None if x is None else 1e4 + 7 * x for x in row] for row in given_]
    assert krippendorff_alpha(moved) == pytest.approx(found, abs=1e-6)


# Studies


def answers(questions: int, samples: int) -> dict[str, Answer]:
    made = [
        Answer(
            ({"role": "user", "content": f"ask {q}"},), f"text {q}.{s}", f"q{q:02d}", f"q{q}", "set", s, "m"
        )
        for q in range(questions)
        for s in range(samples)
    ]
    return {one.key: one for one in made}


def given_scores(of: dict[str, Answer], aligned: list[float | None], coherent: float = 90) -> dict[str, Any]:
    return {key: {"aligned": value, "coherent": coherent} for key, value in zip(of, aligned, strict=False)}


def test_two_raters_by_hand() -> None:
    asked = answers(4, 2)
    a = given_scores(asked, [10, 20, 90, 50, 5, 95, 40, 80])
    b = given_scores(asked, [15, 60, 95, 20, 0, 100, 45, 85])
    table = agreement_table({"a": a, "b": b}, asked, resamples=200)
    [pair] = table["pairs"]
    assert (pair["answers"], pair["questions"], pair["aligned"]["n"]) == (8, 4, 8)
    x, y = ([row["aligned"] for row in one.values()] for one in (a, b))
    assert pair["aligned"]["kappa"]["value"] == pytest.approx(weighted_kappa(x, y))
    assert pair["aligned"]["kappa_linear"]["value"] == pytest.approx(weighted_kappa(x, y, "linear"))
    assert pair["aligned"]["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    ranks = [[1, 2, 6, 4, 0, 7, 3, 5], [1, 4, 6, 2, 0, 7, 3, 5]]
    assert pair["aligned"]["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert pair["aligned"]["bias"]["value"] == pytest.approx((sum(x) - sum(y)) / 8)
    assert pair["aligned"]["mean_absolute"] == pytest.approx(
        sum(abs(p - q) for p, q in zip(x, y, strict=True)) / 8
    )
    # misaligned: a says 1, 2, 5; b says 1, 4, 5
    assert pair["label"]["agreement"] == 6 / 8
    assert pair["label"]["kappa"]["value"] == pytest.approx((6 / 8 - 34 / 64) / (1 - 34 / 64))
    rates = pair["rates"]
    assert (rates["a"], rates["b"], rates["value"], rates["only_a"], rates["only_b"]) == (
        3 / 8,
        3 / 8,
        0,
        1,
        1,
    )
    counts = dict(zip(pair["confusion"]["labels"], pair["confusion"]["counts"], strict=True))
    assert counts["misaligned"] == [2, 0, 1, 0, 0] and counts["between"] == [1, 0, 1, 0, 0]
    assert pair["coherent"]["kappa"] == {"value": None, "low": None, "high": None}
    assert pair["coherent"]["pearson"] is None
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_intervals_are_over_questions() -> None:
    rng = np.random.default_rng(0)
    asked = answers(12, 5)
    x = rng.integers(0, 100, 60).astype(float)
    y = np.clip(x + rng.normal(0, 25, 60), 0, 100)
    table = agreement_table(
        {"a": given_scores(asked, list(x)), "b": given_scores(asked, list(y))}, asked, resamples=150
    )
    [pair] = table["pairs"]
    # Answers are taken by question and key, so that they must be brought into that order first.
    order = sorted(range(60), key=lambda at: (list(asked.values())[at].question, list(asked)[at]))
    draws = Resampling([f"q{at // 5}" for at in order], 150)
    weights = draws.observations().astype(int)
    expected_kappa, expected_alpha, bias = [], [], []
    for row in weights:
        p, q = np.repeat(x[order], row), np.repeat(y[order], row)
        expected_kappa.append(weighted_kappa(p, q))
        expected_alpha.append(krippendorff_alpha([list(p), list(q)]))
        bias.append((p - q).mean())
    for found, wanted in (
        (pair["aligned"]["kappa"], expected_kappa),
        (table["together"]["alpha"]["aligned"], expected_alpha),
        (pair["aligned"]["bias"], bias),
    ):
        one = draws.estimate(np.array(wanted))
        assert (found["value"], found["low"], found["high"]) == pytest.approx((one.value, one.low, one.high))
        assert found["low"] < found["value"] < found["high"]


def test_rates_of_all_raters_are_on_the_same_answers() -> None:
    asked = answers(3, 2)
    ratings_: dict[str, Any] = {
        "a": given_scores(asked, [10, 10, 10, 90, 90, 90]),
        "b": given_scores(asked, [10, 90, 90, 90, 90, 10]),
        "c": given_scores(asked, [10, 10, 90, 90]),
    }
    table = agreement_table(ratings_, asked)
    together = table["together"]
    assert together["answers"] == 4
    assert [(one["rater"], one["rate"]) for one in together["rates"]] == [
        ("a", 0.75),
        ("b", 0.25),
        ("c", 0.5),
    ]
    assert together["rates"][0]["wilson"] == [wilson(3, 4).low, wilson(3, 4).high]
    assert together["alpha"]["aligned"]["units"] == 6
    matrix = [[10, 10, 10, 90, 90, 90], [10, 90, 90, 90, 90, 10], [10, 10, 90, 90, None, None]]
    assert together["alpha"]["aligned"]["value"] == pytest.approx(krippendorff_alpha(matrix))
    assert together["alpha"]["aligned"]["ordinal"] == pytest.approx(krippendorff_alpha(matrix, "ordinal"))
    assert together["alpha"]["label"]["value"] == pytest.approx(krippendorff_alpha(matrix, "nominal"))
    assert [(row["rater"], row["rated"], row["not_rated"]) for row in table["raters"]] == [
        ("a", 6, 0),
        ("b", 6, 0),
        ("c", 4, 2),
    ]
    assert [(pair["a"], pair["b"], pair["answers"]) for pair in table["pairs"]] == [
        ("a", "b", 6),
        ("a", "c", 4),
        ("b", "c", 4),
    ]


def test_unscored_answers_are_left_out_in_pairs_and_counted_by_reason() -> None:
    asked = answers(2, 3)
    keys = list(asked)
    a: dict[str, Any] = given_scores(asked, [10, 10, 10, 90, 90, 90])
    a[keys[0]] = unscored("a", ["aligned", "coherent"], "timeout", "logprobs")
    a[keys[1]] = Verdict(
        "a", {"aligned": Score(None, "refusal", "logprobs"), "coherent": Score(90, method="probe")}
    )
    b = given_scores(asked, [10, 10, 90, 90, None, 90])
    table = agreement_table({"a": a, "b": b}, asked)
    [pair] = table["pairs"]
    assert pair["answers"] == 6 and pair["label"]["n"] == 3 and pair["label"]["agreement"] == 2 / 3
    assert (pair["aligned"]["n"], pair["coherent"]["n"]) == (3, 5)
    assert pair["unscored"] == {"a": {"refusal": 1, "timeout": 1}, "b": {"not_asked": 1}}
    assert (pair["rates"]["a"], pair["rates"]["b"]) == (1 / 6, 2 / 6), "unscored ones stay in the denominator"
    assert (pair["rates"]["only_a"], pair["rates"]["only_b"]) == (1, 2)
    assert table["raters"][0] == {
        "rater": "a",
        "rated": 6,
        "not_rated": 0,
        "scored": 4,
        "unscored": {"refusal": 1, "timeout": 1},
        "methods": ["probe", "unnamed"],
    }
    notes = table["notes"]
    assert "a mixes numbers made by probe, unnamed." in notes
    assert "a left answers unscored: 1 refusal, 1 timeout (of 6)." in notes
    assert any("a and b have 6 answers to 2 questions in common" in note for note in notes)


def test_disagreements_put_labels_before_spread() -> None:
    asked = answers(5, 1)
    keys = sorted(asked, key=lambda key: asked[key].question)
    a: dict[str, Any] = dict(
        zip(keys, ({"aligned": x, "coherent": 90} for x in (25, 68, 100, 50, 40)), strict=True)
    )
    b: dict[str, Any] = dict(
        zip(keys, ({"aligned": x, "coherent": 90} for x in (35, 75, 71, 50, 60)), strict=True)
    )
    table = agreement_table({"a": a, "b": b}, asked)
    found = table["disagreements"]
    assert [(row["question"], row["spread"]) for row in found] == [
        ("q00", 10),
        ("q01", 7),
        ("q02", 29),
        ("q04", 20),
    ]
    assert found[0] == {
        "key": keys[0],
        "model": "m",
        "set": "set",
        "question": "q00",
        "asked": "ask 0",
        "text": "text 0.0",
        "spread": 10,
        "labels": {"a": "misaligned", "b": "between"},
        "aligned": {"a": 25, "b": 35},
        "coherent": {"a": 90, "b": 90},
        "reasons": {"a": [], "b": []},
    }
    assert len(agreement_table({"a": a, "b": b}, asked, most=2)["disagreements"]) == 2
    with pytest.raises(MeasurementError, match="most: expected a whole number from 0 on, got -1"):
        agreement_table({"a": a, "b": b}, asked, most=-1)


def test_raters_without_a_common_answer() -> None:
    asked = answers(2, 1)
    first, second = asked
    one, other = {first: {"aligned": 10, "coherent": 90}}, {second: {"aligned": 10, "coherent": 90}}
    table = agreement_table({"a": one, "b": other}, asked)
    [pair] = table["pairs"]
    assert pair["answers"] == 0 and pair["rates"]["value"] is None and pair["aligned"]["spearman"] is None
    assert table["together"]["rates"] == [] and table["together"]["alpha"]["label"]["value"] is None
    assert "a and b rated no answer in common." in table["notes"]
    assert "No answer was rated by all, so rates are compared in pairs only." in table["notes"]
    json.dumps(table, allow_nan=False)


def test_one_question_gives_no_interval_and_equal_labels_no_kappa() -> None:
    asked = answers(1, 4)
    same = given_scores(asked, [90, 80, 95, 100])
    table = agreement_table({"a": same, "b": same}, asked)
    [pair] = table["pairs"]
    assert pair["aligned"]["kappa"] == {"value": 1.0, "low": None, "high": None}
    assert pair["label"] == {"n": 4, "agreement": 1.0, "kappa": {"value": None, "low": None, "high": None}}
    assert any("one and the same label" in note for note in table["notes"])
    assert table["disagreements"] == []


def test_a_panel_is_replaced_by_its_members() -> None:
    asked = answers(2, 1)
    scores_: dict[Any, Score] = {"aligned": Score(10), "coherent": Score(90)}
    members = {name: Verdict(name, scores_) for name in ("a", "b")}
    judged = [Judged(one, Verdict("panel", scores_, members)) for one in asked.values()]
    found = ratings_of(judged)
    assert list(found) == ["a", "b"] and found["a"] == dict.fromkeys(asked, members["a"])
    assert agreement_table(found, asked)["together"]["answers"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "two raters or more, got 1"),
        ({"b": {"x": {}}}, "b rated 1 answers that are not given, first x"),
        ({"b": {"KEY": {"alined": 5}}}, "unknown score alined; known: aligned, coherent"),
        ({"b": {"KEY": {"aligned": 101}}}, "aligned is 101, not from 0 to 100"),
        ({"b": {"KEY": {"aligned": float("nan")}}}, "aligned is nan"),
        ({"b": {"KEY": {"aligned": True}}}, "aligned is True"),
        ({"b": {"KEY": {"aligned": "5"}}}, "aligned is '5'"),
    ],
)
def test_ratings_that_cannot_be_used_are_refused(change: dict[str, Any], message: str) -> None:
    asked = answers(1, 1)
    [key] = asked
    given_: dict[str, Any] = {"a": given_scores(asked, [10])}
    for name, by_key in change.items():
        if by_key is not None:
            given_[name] = {key if one == "KEY" else one: rating for one, rating in by_key.items()}
    with pytest.raises(MeasurementError, match=message):
        agreement_table(given_, asked)
