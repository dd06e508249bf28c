"""Verdicts by intervals, and the file of claims."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from em.analyses.base import Statistic
from em.errors import ConfigError
from em.reproduce.claims import CLAIMS, Claim, Expectation, Paper, claims_table, decide, negated, read_claims
from em.reproduce.figures import read_figures

ROOT = Path(__file__).parents[2]
FORMS = ["below", "above", "between", "outside"]
GOOD = """\
claims:
  general-more-stable:
    figure: stability
    claim: The general vector loses
      less to noise.
    paper: {where: "2602.07852, stability", reported: general below narrow}
    statistic: vector/stability.area/general-narrow
    expect: {below: 0}
    minimum: 8
  rate:
    figure: em
    claim: It is misaligned.
    paper: {where: "2506.11613", reported: "40%"}
    statistic: rates/rate.open/main
    expect: {between: [20, 60]}
"""


def statistic(low: float | None, high: float | None, n: int = 20, value: float | None = 0.0) -> Statistic:
    return Statistic(value, low, high, n, "%", "share of answers")


def claim(minimum: int = 5, **expected: Any) -> Claim:
    return Claim("it", "em", "It is so.", Paper("x", "y"), "rates/rate", Expectation(**expected), minimum)


def outcome(low: float, high: float, **expected: Any) -> str:
    return decide(claim(**expected), statistic(low, high)).outcome


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(tmp_path: Path, text: str, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_claims(write(tmp_path, text), **more)
    return [line.split("claims.yaml: ", 1)[-1] for line in error.value.problems]


@pytest.mark.parametrize(
    ("low", "high", "expected", "found"),
    [
        (-2, -1, {"below": 0}, "holds"),
        (1, 2, {"below": 0}, "does not hold"),
        (-1, 1, {"below": 0}, "not decidable"),
        (1, 2, {"above": 0}, "holds"),
        (-2, -1, {"above": 0}, "does not hold"),
        (2, 3, {"between": (1, 4)}, "holds"),
        (1, 4, {"between": (1, 4)}, "holds"),
        (4.1, 5, {"between": (1, 4)}, "does not hold"),
        (-1, 0.9, {"between": (1, 4)}, "does not hold"),
        (0, 2, {"between": (1, 4)}, "not decidable"),
        (0, 5, {"between": (1, 4)}, "not decidable"),
        (4, 5, {"outside": (1, 4)}, "not decidable"),
        (4.1, 5, {"outside": (1, 4)}, "holds"),
        (2, 3, {"outside": (1, 4)}, "does not hold"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, expected: Any, found: str) -> None:
    assert outcome(low, high, **expected) == found


@pytest.mark.parametrize("form", ["below", "above"])
@pytest.mark.parametrize("interval", [(-1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_a_bound_is_on_neither_side(form: str, interval: tuple[float, float]) -> None:
    assert outcome(*interval, **{form: 0.0}) == "not decidable"


def drawn(draw: random.Random) -> tuple[Claim, Statistic]:
    """Small whole numbers, so that intervals often touch bounds."""
    form, ends = draw.choice(FORMS), sorted(draw.sample(range(-4, 5), 2))
    expected = draw.randint(-4, 4) if form in ("below", "above") else tuple(ends)
    low = draw.randint(-5, 5)
    return claim(**{form: expected}), statistic(low, low + draw.randint(0, 4))


def test_a_claim_and_its_negation_say_the_opposite() -> None:
    draw, seen = random.Random(0), set()
    for _ in range(3000):
        one, found = drawn(draw)
        own, other = decide(one, found).outcome, decide(negated(one), found).outcome
        opposite = {"holds": "does not hold", "does not hold": "holds"}
        assert other == opposite.get(own, "not decidable")
        assert negated(negated(one)).expect == one.expect
        seen.add((next(form for form in FORMS if getattr(one.expect, form) is not None), own))
    assert len(seen) == len(FORMS) * 3


def test_what_is_missing_is_not_decidable_and_says_why() -> None:
    one = claim(minimum=8, above=0)
    assert decide(one, None, "main_lora: not trained").text == (
        "rates/rate does not exist here: main_lora: not trained"
    )
    nothing = Statistic(None, None, None, 9, "%", "the reference was not asked")
    assert "the reference was not asked" in decide(one, nothing).text
    few = decide(one, statistic(1, 2, n=7))
    assert few.outcome == "not decidable" and few.text.endswith("n = 7 is below the minimum of 8")
    assert decide(one, statistic(1, 2, n=8)).outcome == "holds"
    for bad in (
        statistic(None, None),
        statistic(1, None),
        statistic(1, float("nan")),
        statistic(1, 2, value=float("nan")),
        nothing,
    ):
        assert decide(one, bad).outcome == "not decidable"


def test_verdicts_name_the_interval_and_the_bounds() -> None:
    assert decide(claim(below=0), statistic(-2, -1)).text == "all of the interval [−2, −1] is below 0"
    assert decide(claim(below=0), statistic(1, 2)).text == "all of the interval [1, 2] is above 0"
    wide = decide(claim(between=(1, 4)), statistic(0, 5)).text
    assert wide == "not at this sample size: the interval [0, 5] is not on one side of 1 and 4"
    inside = decide(claim(outside=(1, 4)), statistic(2, 3)).text
    assert inside == "all of the interval [2, 3] is between 1 and 4"


def test_the_table_has_the_paper_beside_ours() -> None:
    one, found = claim(above=30), statistic(31.25, 40, 8, 35.5)
    rows: Sequence[Any] = [(one, found, decide(one, found)), (one, None, decide(one, None))]
    table = claims_table("claims-em", "Claims", rows)
    first, second = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert first["ours"] == "35.5 [31.25, 40] %" and first["n"] == 8 and first["expected"] == "above 30"
    assert (first["where"], first["in the paper"], first["verdict"]) == ("x", "y", "holds")
    assert second["ours"] is None and second["n"] is None and second["verdict"] == "not decidable"
    bare = claims_table("c", "C", [(one, statistic(None, None, 8, 35.5), decide(one, None))])
    assert dict(zip(bare.columns, bare.rows[0], strict=True))["ours"] == "35.5 %"


def test_a_file_is_read(tmp_path: Path) -> None:
    stable, rate = read_claims(write(tmp_path, GOOD))
    assert (stable.id, stable.minimum, stable.expect) == ("general-more-stable", 8, Expectation(below=0.0))
    assert stable.claim == "The general vector loses less to noise."
    assert rate.expect.between == (20.0, 60.0) and rate.minimum == 5 and rate.paper.reported == "40%"


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    text = """\
claims:
  a:
    figur: em
    claim: It is.
    paper: {where: x, reported: 40}
    statistic: rates
    expect: {below: 0, above: 1}
  B_b:
    figure: em
    claim: It is.
    paper: {where: x}
    statistic: rates/it
    expect: {between: [4, 1]}
    minimum: 0
  c: soon
  d:
    figure: em
    id: other
    claim: It is.
    paper: {where: x, reported: y}
    statistic: rates/it
    expect: {}
    minimum: 2.5
  e:
    figure: em
    claim: It is.
    paper: {where: x, reported: y}
    statistic: rates/it
    expect: {below: .nan}
more: 1
"""
    found = problems(tmp_path, text)
    for line in (
        "claims.a.figur: unknown key; did you mean claims.a.figure?",
        "claims.a.paper.reported: expected text, got 40",
        "claims.a.statistic: expected ANALYSIS/KEY, got 'rates'",
        "claims.a.expect: expected one of below, above, between, outside, got below and above",
        "claims.B_b: an id is small letters and digits in words joined by -",
        "claims.B_b.paper.reported: missing; every claim needs it",
        "claims.B_b.expect.between: the first bound must be the lower one, got [4.0, 1.0]",
        "claims.B_b.minimum: expected a whole number from 1 on, got 0",
        "claims.c: expected a mapping, got 'soon'",
        "claims.d.id: unknown key; the id is the claim's key",
        "claims.d.minimum: expected a whole number, got 2.5",
        "claims.e.expect.below: expected a number or null, got nan",
        "more: unknown key; valid keys: claims",
    ):
        assert line in found
    assert not [line for line in found if line.startswith("claims.a.figure: missing")], "it is misspelt"


def test_nothing_expected_is_a_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD.replace("{below: 0}", "{}")) == [
        "claims.general-more-stable.expect: expected one of below, above, between, outside, got none"
    ]


def test_an_id_or_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    twice = GOOD.replace("  rate:\n", "  general-more-stable:\n    figure: em\n")
    assert problems(tmp_path, twice) == [
        "claims.general-more-stable: stands there twice; rename or remove one",
        "claims.general-more-stable.figure: stands there twice; rename or remove one",
    ]


@pytest.mark.parametrize("text", ["", "claims:", "claims: []", "- a", "claims: {a: ", "claims: 2026-99-99"])
def test_what_is_no_file_of_claims_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: cannot be read"):
        read_claims(tmp_path / "none.yaml")


def test_figures_and_analyses_must_exist(tmp_path: Path) -> None:
    known = {"stabilit": ["vector"], "em": ["rate", "other"]}
    assert problems(tmp_path, GOOD, analyses=known) == [
        "claims.general-more-stable.figure: no figure 'stability'; did you mean stabilit?",
        "claims.rate.statistic: figure em has no analysis 'rates'; did you mean rate?",
    ]
    assert len(read_claims(write(tmp_path, GOOD), {"stability": ["vector"], "em": ["rates"]})) == 2


def test_the_claims_of_the_project_name_figures_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    figures = read_figures()
    claims = read_claims(CLAIMS, {name: plan.analyses for name, plan in figures.items()})
    assert len(claims) > 40
    for one in claims:  # members that a statistic names are members of its analysis
        analysis, _, key = one.statistic.partition("/")
        built = figures[one.figure].built()[analysis]
        words = key.replace("~", "/").replace("<-", "/").replace("-", "/").replace("@", "/").split("/")
        known = {word for word in words if word.startswith(("main_", "second_", "third_", "prose_", "code_"))}
        assert known <= set(built.members), one.id
    assert {one.figure for one in claims} == set(figures), "every experiment has a claim"
