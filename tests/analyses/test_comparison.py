"""Runs side by side: numbers of planted tables, and a comparison of tiny runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from em import runs
from em.analyses import comparison
from em.analyses.base import Context, Found, Raw, Statistic
from em.analyses.comparison import Comparison
from em.config.schema import CompareConfig
from em.errors import ConfigError, RunError
from em.measurements.arms import WEIGHTS, Solution
from em.measurements.efficiency import Efficiency, efficiency_table
from em.measurements.margins import DomainMargins, PairLosses, margins_table
from em.measurements.significance import Significance, significance_table
from em.measurements.stability import Stability, stability_table
from em.stats import Resampling
from tests.comparison.trained import SMALL, VECTOR, train

SOLUTIONS = {
    "a0": Solution("a0", "a", "lora", WEIGHTS, 2.0, 0),
    "a1": Solution("a1", "a", "lora", WEIGHTS, 2.0, 1),
    "b0": Solution("b0", "b", "lora", WEIGHTS, 2.0, 0),
    "b1": Solution("b1", "b", "lora", WEIGHTS, 2.0, 1),
}
MEMBERS = {"a0": "main", "a1": "main_seed1", "b0": "narrow", "b1": "narrow_seed1"}
SECTIONS = ["efficiency", "stability", "significance", "margins", "directions", "steering", "ablation"]
PAIRS = [("main", "narrow"), ("narrow", "main"), ("main", "main_seed1"), ("main", "lost")]
TOKENS = np.full(6, 2.0)
PROMPTS = [f"p{number}" for number in range(6)]
DRAWS = Resampling(PROMPTS, 50, 0)


def efficiencies(equal: dict[str, float]) -> Raw:
    """Every answer has the same loss, so every interval has no width."""
    found = {
        name: Efficiency(
            2.0, [0.0, 2.0], np.array([[4.0], [loss]]) * TOKENS, loss * TOKENS, 4 * TOKENS, TOKENS
        )
        for name, loss in equal.items()
    }
    return {"domain": "soup", **efficiency_table(found, SOLUTIONS, {WEIGHTS: 2.0}, DRAWS), "missing": {}}


def stabilities(degraded: dict[str, tuple[float, float]]) -> Raw:
    """Percent of a gain of 2 nats that is lost at ε 0.5 and 1."""
    found = {
        name: Stability(
            [0.5, 1.0], (1 + np.array(lost)[:, None, None] / 50) * TOKENS, TOKENS, 3 * TOKENS, TOKENS
        )
        for name, lost in degraded.items()
    }
    return {"domain": "soup", "examples": 6, **stability_table(found, SOLUTIONS, DRAWS)}


def significances(slopes: dict[str, float], random: float) -> Raw:
    rows = np.array([[0.0], [2.0]]) * TOKENS  # KL is the slope times the norm
    found = {
        name: Significance(
            2.0, [0.0, 2.0], slope * rows, np.array([random * rows] * 2), TOKENS, np.arange(6.0)
        )
        for name, slope in slopes.items()
    }
    slices = ["web"] * 4 + ["notes"] * 2
    return {"corpus": [], **significance_table(found, SOLUTIONS, slices, 50), "missing": {}}


def shifted(prompts: list[str], shifts: dict[str, float], domain: str) -> DomainMargins:
    ones = np.ones(len(prompts))
    moved = {name: PairLosses((2 - shift) * ones, 2 * ones, ones, ones) for name, shift in shifts.items()}
    return DomainMargins(domain, prompts, PairLosses(2 * ones, 2 * ones, ones, ones), moved)


def margins() -> Raw:
    soup = shifted(PROMPTS, {"a0": 1.0, "a1": 0.5, "b0": 0.5, "b1": 0.25}, "soup")
    tent = shifted(PROMPTS[:4], {"a0": 0.5, "a1": 0.25, "b0": 0.0, "b1": 0.0}, "tent")
    return {**margins_table([soup, tent], "soup", SOLUTIONS, {}, 50), "missing": {}}


def cosines(*values: float | None) -> Raw:
    around: Any = [[None if one is None else one + by for one in values] for by in (-0.05, 0.05)]
    return {"cosine": list(values), "low": around[0], "high": around[1]}


def directions() -> Raw:
    names = ["careless − careful", "shift of a0", "vector of b0"]
    values = [[1.0, 0.4, 0.04], [0.4, 1.0, 0.3], [0.04, 0.3, 1.0]]
    layers = {"layers": [0, 1, 2], "auroc": [0.5, 0.7, 0.9], "low": [0.4, 0.6, 0.8], "high": [0.6, 0.8, 1.0]}
    shuffled = {"shuffled": [0.5] * 3, "shuffled_low": [0.4] * 3, "shuffled_high": [0.6] * 3}
    return {
        "layers": [0, 1, 2],
        "separation": {**layers, **shuffled, "held_out_pairs": 6, "train_pairs": 9, "shuffles": 5},
        "reliability": {},
        "between": [
            {"a": "a0", "b": "b0", "arms": ["a", "b"], "replicates": False, **cosines(None, 0.9, 0.82)}
        ],
        "with_difference": {"a0": cosines(None, 0.5, 0.6)},
        "matrix": {"layer": 2, "names": names, "values": values, "low": values, "high": values},
        "updates": [{"a": "a0", "b": "b0", "update": 0.55, "written": None}],
        "written": [{"solution": "a0", "part": "1.mlp.down_proj", "layer": 1, "cosine": 0.04}],
        "missing": {"b1": "it moves no activation"},
    }


def estimate(value: float | None, by: float = 0.1) -> Raw:
    bounds = (None, None) if value is None else (value - by, value + by)
    return {"value": value, "low": bounds[0], "high": bounds[1]}


def steering() -> Raw:
    own = {"shift": [-0.5, 0.0, 0.5], "low": [-0.75, 0.0, 0.25], "high": [-0.25, 0.0, 0.75]}
    random = {"shift": [0.0, 0.0, 0.125], "low": [-0.125, 0.0, 0.0], "high": [0.125, 0.0, 0.25]}
    about = {"layer": 2, "domain": "soup", "pairs": 5, "coefficients": [-0.2, 0.0, 0.2], "controls": 2}
    return {**about, "direction": own, "random": random}


def ablation() -> Raw:
    labels = ["mean-difference", "shift-a0", "shift-b0", "random"]
    cells = {
        name: {label: estimate(0.25 * at) for at, label in enumerate(labels)} for name in ("a1", "b0", "b1")
    }
    cells["a0"] = {"mean-difference": estimate(0.5), "shift-a0": estimate(1.0), "shift-b0": estimate(None)}
    cells["a0"]["random"] = estimate(0.0)
    table = {"layer": 2, "layers": [1, 2], "domain": "soup", "pairs": 5, "directions": labels}
    return {**table, "solutions": {name: cells[name] for name in SOLUTIONS}}


@pytest.fixture(scope="module")
def raw() -> Raw:
    rows = [{**vars(one), "run": f"runs/{name}", "steps": 4} for name, one in SOLUTIONS.items()]
    tables = {
        "solutions": {"solutions": rows, "backbone": {}, "training": "soup", "notes": ["read with care"]},
        "efficiency": efficiencies({"a0": 1.0, "a1": 1.5, "b0": 2.0, "b1": 2.25}),
        "stability": stabilities({"a0": (10, 20), "a1": (10, 20), "b0": (40, 80), "b1": (40, 80)}),
        "significance": significances({"a0": 0.5, "a1": 0.25, "b0": 0.125, "b1": 0.125}, 0.0625),
        "margins": margins(),
        "directions": directions(),
        "steering": steering(),
        "ablation": ablation(),
    }
    made = {"tables": tables, "members": MEMBERS, "absent": {"lost": "it failed"}}
    return dict(json.loads(json.dumps(made, allow_nan=False)))


@pytest.fixture(scope="module")
def found(raw: Raw) -> Found:
    return made().read(raw)


def made(**changes: Any) -> Comparison:
    options = {"members": [*MEMBERS.values(), "lost"], "sections": SECTIONS, "pairs_of": PAIRS}
    return Comparison(**{**options, **changes})


def near(one: Statistic, value: float, by: float = 0.0) -> bool:
    return (one.value, one.low, one.high) == tuple(pytest.approx(value + d, abs=1e-9) for d in (0.0, -by, by))


@pytest.mark.parametrize(
    ("name", "value", "n"),
    [
        ("efficiency.equal/main", 1.0, 6),
        ("efficiency.own/narrow", 2.0, 6),
        ("efficiency.equal/main-narrow", 1.25 - 2.125, 6),
        ("stability.area/main", 10.0, 6),
        ("stability.area/main-narrow", -30.0, 6),
        ("stability.half_life/narrow", 0.625, 6),
        ("stability.half_life/main-narrow", 0.375, 6),
        ("significance.slope.web/main", 0.5, 4),
        ("significance.slope.notes/main-narrow", 0.25, 2),
        ("significance.slope.web/main-random", 0.4375, 4),
        ("significance.slope/main-narrow", 0.25, 4),
        ("significance.slope/main-random", 0.4375, 4),
        ("margins.shift.soup/main", 1.0, 6),
        ("margins.shift.tent/main_seed1", 0.25, 4),
        ("margins.shift.training/main-narrow", 0.375, 6),
        ("margins.shift.soup/main-narrow", 0.375, 6),
        ("narrowness/main", 0.5, 4),
        ("narrowness/main-narrow", 0.5, 4),
        ("directions.vector/narrow", 0.04, 6),
        ("updates.cosine/main~narrow", 0.55, 1),
    ],
)
def test_numbers_of_planted_tables(found: Found, name: str, value: float, n: int) -> None:
    one = found.statistics[name]
    assert near(one, value) and one.n == n


def test_a_pair_the_other_way_round_has_the_other_sign(found: Found) -> None:
    for name in ("efficiency.equal", "stability.area", "significance.slope.web", "narrowness"):
        one, other = (found.statistics[f"{name}/{pair}"] for pair in ("main-narrow", "narrow-main"))
        assert (one.value, one.low, one.high) == (-other.value, -other.high, -other.low)
        assert one.seeds == tuple(-seed for seed in other.seeds)


def test_seeds_are_listed(found: Found) -> None:
    assert found.statistics["efficiency.equal/main"].seeds == (1.0, 1.5)
    assert found.statistics["efficiency.equal/main-narrow"].seeds == (-1.0, -0.75)
    assert found.statistics["significance.slope/main-narrow"].seeds == (0.375, 0.125)


def test_what_cannot_be_compared_says_why(found: Found) -> None:
    same = found.statistics["efficiency.equal/main-main_seed1"]
    assert (same.value, same.what) == (None, "main and main_seed1 are seeds of one arm")
    assert found.statistics["stability.area/main-lost"].what == "lost: it failed"
    lost = found.statistics["directions.cosine/narrow_seed1~difference"]
    assert lost.value is None and "it moves no activation" in lost.what


def test_cosines_by_layer(found: Found) -> None:
    assert near(found.statistics["directions.cosine/main~narrow"], 0.82, 0.05)
    share = found.statistics["directions.layers/main~narrow"]
    assert (share.value, share.low, share.high, share.n) == (1.0, 0.5, 1.0, 6)
    other = found.statistics["directions.layers/main~difference"]
    assert (other.value, other.low, other.high) == (0.0, 0.0, 0.0)
    assert near(found.statistics["directions.separation"], 0.9, 0.1)
    written = found.statistics["directions.written/main"]
    assert (written.value, written.low, written.high) == (0.04, None, None)
    assert found.statistics["updates.written/main~narrow"].value is None


def test_steering_and_ablation_against_random(found: Found) -> None:
    assert near(found.statistics["steering.at_0.2"], 0.5, 0.25)
    assert near(found.statistics["steering.random_at_0.2"], 0.125, 0.125)
    assert near(found.statistics["steering.at_0.2-random"], 0.375, 0.375)
    assert near(found.statistics["steering.at_-0.2-random"], -0.5, 0.375)
    assert "steering.at_0" not in found.statistics
    assert near(found.statistics["ablation.own/main"], 1.0, 0.1)
    assert near(found.statistics["ablation.own-random/main"], 1.0, 0.2)
    assert near(found.statistics["ablation.random/narrow"], 0.75, 0.1)
    assert near(found.statistics["ablation.other/narrow<-main"], 0.25, 0.1)
    assert near(found.statistics["ablation.difference/main"], 0.5, 0.1)
    assert found.statistics["ablation.other/main<-narrow"].value is None
    assert found.statistics["ablation.own/main_seed1"].what == "there is no direction shift-a1"


def test_an_interval_from_two_is_not_narrower_than_either() -> None:
    from em.analyses._comparison_statistics import apart

    one = apart(estimate(1.0, 0.5), estimate(0.25, 0.25), 4, "nats", "it")
    assert (one.value, one.low, one.high) == (0.75, 0.0, 1.5)
    assert apart(estimate(None), estimate(0.25), 4, "nats", "it").value is None
    bare = apart({"value": 1.0, "low": None, "high": None}, estimate(0.25), 4, "nats", "it")
    assert (bare.value, bare.low, bare.high) == (0.75, None, None)


def test_the_page_has_figures_tables_and_notes(found: Found) -> None:
    ids = [figure.id for figure in found.figures]
    assert len(set(ids)) == len(ids)
    assert {"efficiency", "stability", "margins", "cosines", "steering", "ablation"} <= set(ids)
    assert [table.id for table in found.tables] == ["summary", "differences"]
    differences = found.tables[1]
    row = next(row for row in differences.rows if row[:3] == ["efficiency.equal", "main", "narrow"])
    assert row[3:9] == [-0.875, -0.875, -0.875, 6, "nats per token", "-1, -0.75"]
    assert "lost is left out: it failed" in found.notes and "read with care" in found.notes
    assert "a0: the run of main" in found.notes
    assert "directions: b1: it moves no activation" in found.notes


def test_without_pairs_there_is_no_table_of_differences(raw: Raw) -> None:
    plain = made(pairs_of=None).read(raw)
    assert [table.id for table in plain.tables] == ["summary"]
    assert not [name for name in plain.statistics if name.endswith("main-narrow")]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pairs_of": [["main", "other"]]}, "pairs_of: expected two of members, got ['main', 'other']"),
        ({"pairs_of": [["main", "main"]]}, "pairs_of: expected two of members, got ['main', 'main']"),
        ({"pairs_of": [["main"]]}, "pairs_of: expected two of members, got ['main']"),
        ({"sections": []}, "sections: expected one or more, each once"),
        ({"sections": ["efficency"]}, "did you mean efficiency?"),
        ({"members": []}, "members: expected one or more, each once"),
        ({"overrides": {"drawss": 3}}, "overrides.drawss: unknown key; did you mean overrides.draws?"),
        ({"overrides": {"draws": "x"}}, "overrides.draws: expected a whole number, got 'x'"),
        ({"overrides": {"sections": []}}, "overrides.sections: use the option sections instead"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**changes)
    assert line in str(error.value)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.RunRecord]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "wide": runs.read(train(folder, "members/wide", intervention=VECTOR)),
        "narrow": runs.read(train(folder, "members/narrow", intervention=VECTOR, kl={"weight": 5.0})),
    }


def context(records: dict[str, runs.RunRecord], folder: Path, **changes: Any) -> Context:
    return Context(records, {"lost": "it failed"}, folder, CompareConfig(**{**SMALL, **changes}))


def test_runs_are_measured_once_and_read_from_their_tables(
    records: dict[str, runs.RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("wide", "narrow"), ("wide", "lost")]
    sections: Any = ["efficiency", "margins", "directions", "steering", "ablation"]
    analysis = Comparison(["wide", "lost", "narrow"], sections, pairs, {"examples": 5})
    # The pool's domain is another experiment's: these runs share a training domain of their own.
    given = context(records, tmp_path / "it", domain="tent")
    raw = json.loads(json.dumps(analysis.measure(given), allow_nan=False))
    table = raw["tables"]["efficiency"]
    assert table["domain"] == "soup" and table["examples"] == 5
    assert raw["members"] == {"wide": "wide", "narrow": "narrow"} and raw["absent"] == {"lost": "it failed"}
    assert (tmp_path / "it" / "report.html").is_file()
    found = analysis.read(raw)
    [row] = table["differences"]
    one = found.statistics["efficiency.equal/wide-narrow"]
    assert (one.value, one.low, one.high, one.n) == (row["value"], row["low"], row["high"], 5)
    assert found.statistics["efficiency.equal/wide-lost"].what == "lost: it failed"
    for name, section, n in (
        ("margins.shift.training/wide-narrow", "margins", 4),
        ("directions.cosine/wide~narrow", "directions", 4),
        ("directions.vector/wide", "directions", 4),
        ("steering.at_0.2-random", "steering", 2),
        ("ablation.own/wide", "ablation", 2),
        ("ablation.other/wide<-narrow", "ablation", 2),
    ):
        assert section in raw["tables"] and found.statistics[name].n == n, name
    both = raw["tables"]["directions"]["matrix"]
    at = both["names"].index("vector of wide"), both["names"].index("careless − careful")
    assert found.statistics["directions.vector/wide"].value == both["values"][at[0]][at[1]]
    assert found.statistics["directions.layers/wide~narrow"].value in (0.0, 0.5, 1.0), "two layers are moved"
    monkeypatch.setattr(comparison, "compare", lambda *given: pytest.fail("measured again"))
    assert analysis.measure(context(records, tmp_path / "it", domain="tent")) == raw


def test_a_domain_that_is_asked_for_is_used(records: dict[str, runs.RunRecord], tmp_path: Path) -> None:
    analysis = Comparison(["wide"], ["efficiency"], overrides={"domain": "tent"})
    raw = analysis.measure(context(records, tmp_path))
    assert raw["tables"]["efficiency"]["domain"] == "tent"
    assert analysis.read(raw).statistics["efficiency.own/wide"].value is not None


def test_without_any_run_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lost: it failed"):
        Comparison(["lost"], ["efficiency"]).measure(context({}, tmp_path))
