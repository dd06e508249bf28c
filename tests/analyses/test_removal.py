"""Planted paths give exact approaches; tiny runs are read as their own adapters and tables say."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats

from em import runs
from em.analyses.base import Context, Found, Raw
from em.analyses.removal import Removal
from em.config import build
from em.config.schema import CompareConfig
from em.errors import ConfigError, RunError
from em.figures.draw import draw
from em.figures.model import Curves
from em.files import write_json, write_tensors
from em.loading import load_backbone
from em.measurements.trajectory import snapshot_path
from tests.comparison.trained import VECTOR, train
from tests.tiny import merge

TARGET, ASIDE, REMOVED_AT = [2.0, 0.0], [0.0, 2.0], 3
Paths = dict[str, list[list[float]]]
# The general run goes straight to its end; the removed one turns to it after step 3.
TURNING: Paths = {
    "general": [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [1.0, 0.0], [1.5, 0.0], [1.5, 0.0], TARGET],
    "kept": [[0.0, 0.0], ASIDE, ASIDE, ASIDE, ASIDE, ASIDE, ASIDE],
    "removed": [[0.0, 0.0], ASIDE, ASIDE, ASIDE, [1.0, 1.0], [1.5, 0.5], TARGET],
}
STAYING = {**TURNING, "removed": TURNING["kept"]}


def seed_of(paths: Paths, modules: int = 1) -> Raw:
    """The stored numbers of one seed whose paths are known, the same in every module."""
    end = np.array(TARGET)
    own = {arm: [[float(np.dot(p, p))] * modules for p in points] for arm, points in paths.items()}
    shared = {arm: [[float(np.dot(p, end))] * modules for p in points] for arm, points in paths.items()}
    return {
        "names": {arm: f"{arm}_run" for arm in paths},
        "removed_at": REMOVED_AT,
        "since": REMOVED_AT,
        "steps": list(range(7)),
        "space": "the vector",
        "modules": [f"m{number}" for number in range(modules)],
        "targets": {"general": [4.0] * modules},
        "paths": {arm: {"own": own[arm], "general": shared[arm]} for arm in paths},
        "shifts": {arm: {} for arm in paths},
    }


def raw_of(seeds: list[Raw], gains: dict[str, float] | None = None) -> Raw:
    """Gains: domain -> fall of the loss per token in the removed run, with noise over prompts."""
    rng = np.random.default_rng(0)
    held_out = {}
    for domain, gain in (gains or {}).items():
        noise = rng.normal(0, 0.2, 20)
        held_out[domain] = {
            "prompts": [f"{domain} {number}" for number in range(20)],
            "tokens": [10] * 20,
            "seeds": [(10 * (gain + noise - noise.mean())).tolist() for _ in seeds],
        }
    return {
        "seeds": seeds,
        "roles": {"training": ["soup"], "kl": ["tent"]},
        "held_out": held_out,
        "resamples": 300,
        "seed": 0,
        "notes": [],
    }


def read(raw: Raw) -> Found:
    return Removal("g", "k", "r").read(json.loads(json.dumps(raw, allow_nan=False)))


def test_a_planted_return_to_the_general_solution() -> None:
    found = read(raw_of([seed_of(TURNING, modules=3)])).statistics
    for key, value in (
        ("approach", -1.0),
        ("approach_removed", -1.0),
        ("approach_kept", 0.0),
        ("cosine_gain", 1.0),
    ):
        one = found[key]
        assert (one.value, one.low, one.high) == pytest.approx((value,) * 3), "all modules agree"
        assert one.n == 3 and "interval over modules, not over seeds" in one.what


def test_the_negation_a_run_that_stays_where_it_is() -> None:
    found = read(raw_of([seed_of(STAYING, modules=3)])).statistics
    assert found["approach"].value == 0.0 and found["cosine_gain"].value == 0.0
    away = {**TURNING, "removed": [*TURNING["removed"][:4], [-1.0, 2.0], [-2.0, 2.0], [-2.0, 0.0]]}
    further = read(raw_of([seed_of(away)])).statistics
    assert further["approach"].value == pytest.approx((4 - 8**0.5) / 8**0.5)
    assert further["cosine_gain"].value == pytest.approx(-1.0)


def test_a_single_vector_of_a_single_seed_has_no_interval() -> None:
    one = read(raw_of([seed_of(TURNING)])).statistics["approach"]
    assert (one.value, one.low, one.high, one.n) == (pytest.approx(-1.0), None, None, 1)
    assert "no interval: one module, one seed" in one.what and one.seeds == ()


def test_seeds_have_an_interval_and_are_listed() -> None:
    halfway = {**TURNING, "removed": [*TURNING["removed"][:-1], [1.0, 1.0]]}
    paths = [seed_of(TURNING), seed_of(halfway), seed_of(STAYING)]
    for number, one in enumerate(paths):
        one["names"] = {arm: f"{arm}_seed{number}" for arm in TURNING}
    found = read(raw_of(paths)).statistics["approach"]
    assert found.seeds == pytest.approx((-1.0, -0.5, 0.0)) and found.n == 3
    low, high = stats.t.interval(0.95, 2, -0.5, stats.sem([-1.0, -0.5, 0.0]))
    assert (found.value, found.low, found.high) == pytest.approx((-0.5, low, high))


def test_gains_are_positive_where_it_became_more_general() -> None:
    gains = {"soup": 0.05, "tent": 0.4, "boat": 0.2}
    found = read(raw_of([seed_of(TURNING)], gains)).statistics
    for key, value in (("in_domain_gain", 0.05), ("other_shift_gain", 0.3), ("unseen_shift_gain", 0.2)):
        one = found[key]
        assert one.value == pytest.approx(value) and one.n == 20
        assert one.low is not None and one.high is not None and one.low < value < one.high
    assert found["other_shift_gain"].low > 0  # type: ignore[operator]
    against = read(raw_of([seed_of(TURNING)], {"soup": 0.0, "tent": -0.4})).statistics
    assert against["other_shift_gain"].high < 0  # type: ignore[operator]
    assert "unseen_shift_gain" not in against
    nothing = read(raw_of([seed_of(TURNING)])).statistics["other_shift_gain"]
    assert nothing.value is None and "no run has a table" in nothing.what


def test_figures_mark_the_removal_and_leave_gaps_where_there_is_no_cosine() -> None:
    seed = seed_of(TURNING)
    curve = {"steps": [0, 3, 6], "shift": [0.0, -0.1, -0.2]}
    seed["shifts"] = {arm: {"soup": curve, "tent": curve, "boat": curve} for arm in TURNING}
    again = {**seed_of(STAYING), "names": {arm: f"{arm}_again" for arm in STAYING}}
    found = read(raw_of([seed, again], {"soup": 0.1, "tent": 0.1}))
    assert [figure.id for figure in found.figures] == [
        "removal-distance",
        "removal-cosine-general",
        "removal-shift-other",
        "removal-shift-own",
    ]
    distance, cosine, other = found.figures[:3]
    assert isinstance(distance, Curves) and isinstance(cosine, Curves) and isinstance(other, Curves)
    assert distance.series[0].name == "KL removed (removed_run)" and len(distance.series) == 6
    assert distance.series[0].y == pytest.approx([2.0, *[8**0.5] * 3, 2**0.5, 0.5**0.5, 0.0])
    assert [(mark.axis, mark.value) for mark in distance.marks] == [("x", 3.0)]
    assert cosine.series[0].y[0] is None and cosine.series[0].y[-1] == pytest.approx(1.0)
    assert other.series[0].y == [0.0, -0.1, -0.2] and len(other.series) == 3
    for figure in found.figures:
        assert draw(figure, {}).svg


EVERYTHING: dict[str, Any] = {
    "intervention": {"kind": "lora", "r": 2, "alpha": 6, "modules": ["down_proj", "up_proj"], "layers": [1]},
    "callbacks": {
        "trajectory": {"every_n_steps": 2, "at": ["start", "end"], "everything": True},
        "domains": {"every_n_steps": 3, "at": ["start", "end"], "resamples": 20},
    },
}
KL: dict[str, Any] = {"kl": {"weight": 5.0}}
OFF: dict[str, Any] = {"kl": {"weight": 5.0, "schedule": {"kind": "off_at", "step": REMOVED_AT}}}
Members = dict[str, Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("removed")


@pytest.fixture(scope="module")
def loras(folder: Path) -> Members:
    return {
        "general": train(folder, "lora/general", **EVERYTHING),
        "kept": train(folder, "lora/kept", **merge(EVERYTHING, KL)),
        "removed": train(folder, "lora/removed", **merge(EVERYTHING, OFF)),
    }


@pytest.fixture(scope="module")
def vectors(folder: Path) -> Members:
    """One trained vector under three configurations, with snapshots that were planted."""
    general = train(folder, "vector/general", intervention=VECTOR)
    found = {
        "general": general,
        "kept": edited(general, folder / "vector-kept", **KL),
        "removed": edited(general, folder / "vector-removed", **OFF),
    }
    for arm, path in found.items():
        for step, (x, y) in enumerate(TURNING[arm]):
            values = torch.zeros(32)
            values[4], values[9] = x, y
            write_tensors(snapshot_path(path / "trajectory", step), {"vector": values})
    return found


def context(members: Members, tmp_path: Path) -> Context:
    records = {name: runs.read(path) for name, path in members.items()}
    return Context(records, {}, tmp_path, CompareConfig(resamples=100))


def measured(members: Members, tmp_path: Path, **options: Any) -> tuple[Raw, Found]:
    analysis = Removal("general", "kept", "removed", **options)
    raw = json.loads(json.dumps(analysis.measure(context(members, tmp_path)), allow_nan=False))
    return raw, analysis.read(raw)


def test_planted_snapshots_of_vectors_are_read_from_their_folders(vectors: Members, tmp_path: Path) -> None:
    raw, found = measured(vectors, tmp_path)
    (seed,) = raw["seeds"]
    assert (seed["steps"], seed["since"], seed["space"]) == (list(range(7)), 3, "the vector")
    assert seed["targets"]["general"] == [4.0 * 4**2], "times the square of its scale"
    assert found.statistics["approach"].value == pytest.approx(-1.0)
    assert found.statistics["cosine_gain"].value == pytest.approx(1.0)
    distance = found.figures[0]
    assert isinstance(distance, Curves) and distance.series[0].y[0] == pytest.approx(2.0 * 4)
    assert any("no tables/domains.json" in note for note in raw["notes"])


def dense(path: Path, factor: float) -> torch.Tensor:
    """All ΔW of the last snapshot of tiny LoRAs, as one vector."""
    values = load_file(path)
    names = sorted(name.removesuffix(".lora_B") for name in values if name.endswith(".lora_B"))
    parts = [values[f"{name}.lora_B"].double() @ values[f"{name}.lora_A"].double() for name in names]
    return torch.cat([factor * part.flatten() for part in parts])


def test_loras_are_compared_by_their_updates(loras: Members, tmp_path: Path) -> None:
    raw, found = measured(loras, tmp_path)
    (seed,) = raw["seeds"]
    assert seed["steps"] == [0, 2, 4, 6] and seed["since"] == 1 and len(seed["modules"]) == 2
    assert seed["space"] == "the update ΔW"
    assert any("distances since step 2, the last before 3" in note for note in raw["notes"])
    assert not any("apart at step" in note for note in raw["notes"]), "the same run until the removal"
    factor = 6 / 2**0.5
    ends = {arm: dense(snapshot_path(path / "trajectory", 6), factor) for arm, path in loras.items()}
    start = dense(snapshot_path(loras["kept"] / "trajectory", 2), factor)
    d = {arm: float((end - ends["general"]).norm()) for arm, end in ends.items()}
    d_s = float((start - ends["general"]).norm())
    one = found.statistics["approach"]
    assert one.value == pytest.approx((d["removed"] - d["kept"]) / d_s, abs=1e-6)
    assert one.low is not None and one.n == 2
    cosine = torch.nn.functional.cosine_similarity
    gain = float(cosine(ends["removed"], ends["general"], 0) - cosine(ends["kept"], ends["general"], 0))
    assert found.statistics["cosine_gain"].value == pytest.approx(gain, abs=1e-6)
    backbone = load_backbone(runs.read(loras["general"]).config.backbone)
    with runs.read(loras["general"]).adapted(backbone) as intervention:
        assert sum(seed["targets"]["general"]) ** 0.5 == pytest.approx(intervention.norm(), rel=1e-5)
    distance = found.figures[0]
    assert isinstance(distance, Curves) and distance.series[2].y[-1] == pytest.approx(0.0, abs=1e-6)


def test_losses_at_the_end_are_those_of_the_runs_tables(loras: Members, tmp_path: Path) -> None:
    raw, found = measured(loras, tmp_path)
    tables = {
        arm: {row["domain"]: row for row in runs.read(loras[arm]).directory.read_table("domains")["domains"]}
        for arm in ("kept", "removed")
    }
    for key, domain in (("in_domain_gain", "soup"), ("other_shift_gain", "tent")):
        gain = tables["kept"][domain]["loss"] - tables["removed"][domain]["loss"]
        one = found.statistics[key]
        assert one.value == pytest.approx(gain) and one.n == len(set(raw["held_out"][domain]["prompts"]))
        assert one.low is not None and one.high is not None and one.low <= gain <= one.high
    assert raw["held_out"]["soup"]["prompts"][0].startswith("what about soup number")
    shifts = raw["seeds"][0]["shifts"]["removed"]["tent"]
    assert shifts["steps"] == [0, 3, 6]
    assert shifts["shift"][-1] == pytest.approx(tables["removed"]["tent"]["shift"])
    ids = [figure.id for figure in found.figures]
    assert ids == ["removal-distance", "removal-cosine-general", "removal-shift-other", "removal-shift-own"]


def test_b_alone_is_compared_where_a_is_missing_and_it_is_said(loras: Members, tmp_path: Path) -> None:
    copies = {arm: copytree(path, tmp_path / arm) for arm, path in loras.items()}
    for file in (copies["kept"] / "trajectory").glob("*.safetensors"):
        write_tensors(file, {name: value for name, value in load_file(file).items() if "lora_B" in name})
    raw, found = measured(copies, tmp_path)
    assert raw["seeds"][0]["space"] == "the B matrices"
    assert any("B is compared instead of the update" in note for note in raw["notes"])
    assert found.statistics["approach"].value is not None


def test_a_narrow_solution_is_a_second_target(loras: Members, tmp_path: Path) -> None:
    pool = {**loras, "narrow": loras["kept"]}
    raw, found = measured(pool, tmp_path, narrow="narrow")
    seed = raw["seeds"][0]
    assert seed["targets"]["narrow"] == pytest.approx(seed["paths"]["kept"]["own"][-1])
    gain = found.statistics["narrow_cosine_gain"].value
    assert gain is not None and gain < 0, "the kept run is the narrow one itself"
    assert "removal-cosine-narrow" in [figure.id for figure in found.figures]


def edited(run: Path, target: Path, **sections: Any) -> Path:
    copied = copytree(run, target)
    raw = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump(merge(raw, sections)))
    return copied


def test_runs_that_are_not_what_their_roles_say_are_refused(
    loras: Members, vectors: Members, tmp_path: Path
) -> None:
    def bare(arm: str, *steps: int) -> Path:
        path = copytree(loras[arm], tmp_path / f"{arm}-{len(list(tmp_path.iterdir()))}")
        for step in steps:
            snapshot_path(path / "trajectory", step).unlink()
        return path

    cases: list[tuple[dict[str, Path], str]] = [
        ({"general": loras["kept"]}, "general: general has a KL term"),
        ({"kept": loras["removed"]}, "kept: kept does not keep a KL term"),
        ({"removed": loras["kept"]}, "removed has no KL term that ends in mid-training"),
        (
            {"kept": edited(loras["kept"], tmp_path / "other", kl={"weight": 2.0})},
            "kl.weight is 2 in kept and 5",
        ),
        ({"kept": bare("kept", 6)}, "the runs end at different steps"),
        ({"kept": bare("kept", 0, 2, 4, 6)}, "kept: no snapshots"),
        ({"kept": bare("kept", 0, 2)}, "no common snapshot between its start and the removal at step 3"),
        ({"general": vectors["general"]}, "changes other modules than the general run"),
    ]
    for changed, message in cases:
        with pytest.raises(RunError, match=message):
            measured({**loras, **changed}, tmp_path)


def test_paths_that_differ_before_the_removal_are_pointed_out(loras: Members, tmp_path: Path) -> None:
    kept = copytree(loras["kept"], tmp_path / "kept")
    file = snapshot_path(kept / "trajectory", 2)
    write_tensors(file, {name: 1.5 * value for name, value in load_file(file).items()})
    raw, _ = measured({**loras, "kept": kept}, tmp_path)
    assert any("of their norm apart at step 2" in note for note in raw["notes"])


def test_rows_that_differ_cannot_be_paired(loras: Members, tmp_path: Path) -> None:
    kept = copytree(loras["kept"], tmp_path / "kept")
    table = json.loads((kept / "tables" / "domains.json").read_text())
    table["domains"][0]["rows"].pop()
    write_json(kept / "tables" / "domains.json", table)
    with pytest.raises(RunError, match="scored different held-out rows"):
        measured({**loras, "kept": kept}, tmp_path)


def test_seeds_are_groups_of_runs(loras: Members, tmp_path: Path) -> None:
    pool = {f"{arm}{number}": path for arm, path in loras.items() for number in (0, 1)}
    analysis = Removal(["general0", "general1"], ["kept0", "kept1"], ["removed0", "removed1"])
    raw = analysis.measure(context(pool, tmp_path))
    found = analysis.read(raw).statistics
    single = measured(loras, tmp_path)[1].statistics
    for key in ("approach", "cosine_gain", "other_shift_gain"):
        assert found[key].value == pytest.approx(single[key].value)
        assert found[key].seeds == pytest.approx((single[key].value,) * 2)
    assert (found["approach"].low, found["approach"].n) == (pytest.approx(single["approach"].value), 2)


def test_options_are_checked_when_the_analysis_is_built() -> None:
    one = build({"kind": "removal", "general": "g", "kept": "k", "removed": "r", "narrow": "n"}, "analyses")
    assert one.members == ["g", "k", "r", "n"]
    for options in ({"kept": ["a", "b"]}, {"removed": []}, {"narrow": ["a", "b"]}):
        with pytest.raises(ConfigError, match="expected one run for each seed"):
            Removal(**{"general": "g", "kept": "k", "removed": "r", **options})
    with pytest.raises(ConfigError, match="general: expected one run for each seed"):
        Removal(["g", "g"], ["a", "b"], ["c", "d"])
    with pytest.raises(RunError, match="r: not trained"):
        Removal("g", "k", "r").measure(Context({}, {}, Path(), CompareConfig()))
