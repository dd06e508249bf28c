"""Checkpoints: planted paths that turn and that do not; behaviour is that of the rebuilt adapter."""

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from em import runs
from em.analyses.checkpoints import FINAL, Checkpoints
from em.backbone import Backbone
from em.comparison.study import open_study
from em.config.schema import CompareConfig
from em.errors import ConfigError, MeasurementError, RunError
from em.loading import load_backbone
from em.measurements.margins import PairPanel
from em.measurements.trajectory import read_solution, snapshot_steps
from tests.analyses.inner_runs import EVERY_STEP, both, context, plant
from tests.comparison.trained import LORA_1, SMALL, train

STEPS = list(range(0, 24, 2))
TURN = 12


def planted(run: Path, turn: int | None, seed: int = 0) -> Path:
    """B moves one way, and from a step on at a right angle to it; A stays."""
    now = read_solution(run / "trajectory", snapshot_steps(run / "trajectory")[-1])
    a, b = (next(name for name in now if name.endswith(end)) for end in ("lora_A", "lora_B"))
    ways = torch.linalg.qr(torch.randn(32, 2, generator=torch.Generator().manual_seed(seed)))[0].T

    def at(step: int) -> Tensor:
        straight = step if turn is None else min(step, turn)
        return (ways[0] * straight + ways[1] * (step - straight))[:, None] * 0.05

    plant(run, {step: {a: now[a], b: at(step)} for step in STEPS})
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Path]:
    """One that turns, one that does not, a second seed of the former, and one without A matrices."""
    changes: dict[str, Any] = {"intervention": LORA_1, "callbacks": EVERY_STEP, "trainer": {"max_steps": 2}}
    turning = train(folder, "a/turning0", **changes)
    again = train(folder, "a/turning1", seed=1, **changes)
    straight = train(folder, "b/straight", **{**changes, "optimizer": {"lr": 0.02}})
    made = {
        "turning": planted(turning, TURN),
        "again": planted(again, TURN + 2, 1),
        "straight": planted(straight, None),
        "partial": copytree(turning, folder / "partial"),
    }
    whole = {step: read_solution(turning / "trajectory", step) for step in STEPS}
    plant(made["partial"], {s: {n: v for n, v in one.items() if n.endswith("B")} for s, one in whole.items()})
    return made


@pytest.fixture(scope="module")
def backbone(found: dict[str, Path]) -> Backbone:
    return load_backbone(runs.read(found["turning"]).config.backbone)


def test_a_planted_turn_is_found_with_what_it_did(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    analysis = Checkpoints(["turning"], scales=[1, 3], pairs=4)
    raw, page = both(analysis, context(found, tmp_path, backbone))
    made = page.statistics
    peak = made["peak_step"]
    assert (peak.value, peak.low, peak.high, peak.n) == (TURN, None, None, 1)
    rise = made["rotation_rise"]
    assert (rise.value, rise.low, rise.high) == (pytest.approx(1.0, abs=1e-3),) * 3
    assert rise.n == len(STEPS) - 2
    norm = raw["members"]["turning"]["norms"]
    assert norm[0] == 0 and made["norm_growth"].value == pytest.approx(norm[-1] / norm[1])
    assert norm[-1] / norm[1] == pytest.approx((TURN**2 + (22 - TURN) ** 2) ** 0.5 / 2, rel=1e-5)

    stored = raw["members"]["turning"]["shifts"]
    shifts = {domain: np.array([step[:2] for step in values]) for domain, values in stored.items()}
    assert raw["scales"] == [1, 3, FINAL] and shifts["soup"].shape == (len(STEPS), 2, 4)
    means = {domain: values[:, 1].mean(axis=1) for domain, values in shifts.items()}
    every = (means["soup"] + means["tent"]) / 2
    at = STEPS.index(TURN)
    assert made["behaviour_after-before"].value == pytest.approx(every[at + 1] - every[at - 1])
    assert made["behaviour_after-before/other"].value == pytest.approx(
        means["tent"][at + 1] - means["tent"][at - 1]
    )
    assert made["behaviour_end-start"].value == pytest.approx(every[-1])
    assert made["behaviour_end-start/training"].value == pytest.approx(means["soup"][-1])
    low, high = made["behaviour_end-start"].low, made["behaviour_end-start"].high
    assert low is not None and high is not None and low < every[-1] < high
    assert [figure.id for figure in page.figures] == [
        "checkpoint-rotation", "checkpoint-norms",
        "checkpoint-behaviour-training", "checkpoint-behaviour-other",
    ]  # fmt: skip
    assert page.notes == []


def test_behaviour_is_that_of_the_rebuilt_and_scaled_adapter(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    raw, _ = both(Checkpoints(["turning"], scales=[1, 3], pairs=4), context(found, tmp_path, backbone))
    study = open_study(
        [found["turning"]], CompareConfig(**{**SMALL, "sections": ["margins"]}), None, backbone
    )
    record, soup = study.records["turning0"], study.pairs["soup"]
    stored = raw["members"]["turning"]["shifts"]["soup"]
    assert stored[0][0] == [0.0] * 4 and stored[0][2] is None, "step 0 has norm 0 and no final norm"
    with record.adapted(backbone) as intervention:
        panel = PairPanel(backbone, soup, 0, range(4))
        with intervention.disabled():
            reference = panel.losses().margin_P
        final = raw["members"]["turning"]["norms"][-1]
        for step in (TURN, STEPS[-1]):
            values = read_solution(found["turning"] / "trajectory", step)
            for at, factor in enumerate(
                (1.0, 3.0, final / raw["members"]["turning"]["norms"][STEPS.index(step)])
            ):
                intervention.put({n: v * (factor if n.endswith("B") else 1) for n, v in values.items()})
                expected = panel.losses().margin_P - reference
                assert stored[STEPS.index(step)][at] == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert np.abs(stored[-1][1]).max() > 0.01


def test_a_straight_path_has_no_transition(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    analysis = Checkpoints(["straight"], scales=[2], final_norm=False, snapshots=3, pairs=4)
    raw, page = both(analysis, context(found, tmp_path, backbone))
    assert (
        raw["members"]["straight"]["steps"] == [0, 12, 22]
        and len(raw["members"]["straight"]["rotation"]) == 10
    )
    made = page.statistics
    assert made["peak_step"].value is None and "no transition" in made["peak_step"].what
    assert made["rotation_rise"].value == pytest.approx(0.0, abs=1e-4)
    assert made["rotation_rise"].high is not None and made["rotation_rise"].high < 0.01
    assert made["behaviour_after-before"].value is None
    assert "no transition" in made["behaviour_after-before"].what
    assert made["behaviour_end-start"].value is not None
    assert any(note.startswith("straight: no transition was found") for note in page.notes)


def test_seeds_give_an_interval_of_the_step_and_other_configurations_stand_apart(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    members = ["turning", "again", "straight"]
    analysis = Checkpoints(members, scales=[1], final_norm=False, snapshots=4, pairs=2)
    raw, page = both(analysis, context(found, tmp_path, backbone))
    arms = {name: one["arm"] for name, one in raw["members"].items()}
    assert arms["turning"] == arms["again"] != arms["straight"] == "straight"
    peak = page.statistics[f"{arms['turning']}/peak_step"]
    assert (peak.value, peak.n, peak.seeds) == (TURN + 1, 2, (TURN, TURN + 2))
    assert peak.low == pytest.approx(TURN + 1 - 12.706204736174694) and peak.high is not None
    assert page.statistics["straight/peak_step"].value is None
    jump = page.statistics[f"{arms['turning']}/behaviour_end-start"]
    assert jump.value == pytest.approx(np.mean(jump.seeds)) and len(jump.seeds) == 2


def test_snapshots_without_a_cannot_be_rebuilt(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="without their A.*callbacks.trajectory.everything=true"):
        Checkpoints(["partial"]).measure(context(found, tmp_path, backbone))
    with pytest.raises(RunError, match="lost: its training failed"):
        Checkpoints(["turning", "lost"]).measure(context(found, tmp_path, backbone))


def test_runs_without_paired_answers_are_refused(
    found: dict[str, Path], backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    run = copytree(found["turning"], tmp_path / "unpaired")
    raw = yaml.safe_load((run / "config.yaml").read_text())
    soup = [{"path": str(folder / "train.jsonl")}]
    raw["data"] |= {"train": soup, "domains": {"soup": soup}, "kl": []}
    (run / "config.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(MeasurementError, match="soup has no careful answers beside its careless ones"):
        Checkpoints(["run"]).measure(context({"run": run}, tmp_path, backbone))


@pytest.mark.parametrize("options", [{"scales": [0.0, 1.0]}, {"k": 0}, {"snapshots": 1}, {"pairs": 1}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="scales must be above 0"):
        Checkpoints(["turning"], **options)


def test_a_measured_run_is_kept_for_the_same_options_only(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"scales": [1], "final_norm": False, "snapshots": 2, "pairs": 2}
    first, _ = both(Checkpoints(["turning"], **options), context(found, tmp_path, backbone))
    called: list[str] = []

    def member(self: Checkpoints, study: Any, name: str, *_: Any) -> dict[str, Any]:
        called.append(name)
        return dict(first["members"]["turning"])

    monkeypatch.setattr(Checkpoints, "_member", member)
    again = Checkpoints(["turning"], **options).measure(context(found, tmp_path, backbone))
    assert called == [] and again == first
    Checkpoints(["turning"], **{**options, "k": 2}).measure(context(found, tmp_path, backbone))
    assert called == ["turning"]


def hand_made(curves: dict[str, list[float]]) -> dict[str, Any]:
    """Stored rotations of some seeds, without behaviour worth a word."""
    steps = list(range(len(next(iter(curves.values())))))
    shifts = {"soup": [[[0.0, 0.0]] for _ in steps]}
    rest = {
        "arm": "a",
        "rotation_steps": steps,
        "steps": steps,
        "norms": [1.0 for _ in steps],
        "shifts": shifts,
    }
    members = {name: {"seed": 0, "rotation": curve, **rest} for name, curve in curves.items()}
    return {
        "training": "soup", "domains": ["soup"], "clusters": {"soup": [0, 1]}, "scales": [1], "k": 1,
        "resamples": 20, "seed": 0, "members": members,
    }  # fmt: skip


def test_seeds_that_only_have_noise_do_not_make_a_rise() -> None:
    draws = np.random.default_rng(0).normal(-0.5, 0.1, size=(4, 30))
    raw = hand_made({f"seed {number}": curve.tolist() for number, curve in enumerate(draws)})
    made = Checkpoints(list(raw["members"])).read(raw).statistics
    rise = made["rotation_rise"]
    assert min(value or 0.0 for value in rise.seeds) > 0.1, "every curve has a largest value"
    assert rise.low is not None and rise.low < 0.0
    assert made["peak_step"].value is None and made["behaviour_after-before/other"].value is None
    assert "no other domain has pairs" in made["behaviour_after-before/other"].what
    draws[:, 17] += 1.0
    raw = hand_made({f"seed {number}": curve.tolist() for number, curve in enumerate(draws)})
    made = Checkpoints(list(raw["members"])).read(raw).statistics
    assert made["rotation_rise"].low is not None and made["rotation_rise"].low > 0.3
    peak = made["peak_step"]
    assert (peak.value, peak.low, peak.high) == (17.0, 17.0, 17.0)
    assert "(steps 18 and 16; " in made["behaviour_after-before"].what
    assert made["behaviour_after-before"].value == 0.0 and made["behaviour_half_step"].value is None
