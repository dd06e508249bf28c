"""Callbacks with files or a history end the same after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from em import experiment
from em.config import check
from em.errors import MeasurementError
from em.measurements.trajectory import read_trajectory, rotation, snapshot_path
from em.runs import RunDirectory
from tests.callbacks.logged import logged
from tests.callbacks.stopping import Stopping
from tests.tiny import tiny_pairs

STEPS = 6
KEPT = ("trajectory", "monitor", "activations")


def raw(folder: Path, name: str) -> dict[str, Any]:
    each = {"at": ["start", "end"], "every_n_steps": 1}
    return tiny_pairs(
        folder,
        name=name,
        trainer={"max_steps": STEPS, "checkpoint_every_n_steps": 2},
        callbacks={
            "trajectory": each,
            "monitor": {**each, "pairs": 4, "train_pairs": 6, "resamples": 50},
            "activations": {**each, "pairs": 4, "layers": [1]},
            "stopping": {"_target_": "tests.callbacks.stopping.Stopping", "step": 5},
        },
    )


@pytest.fixture(scope="module")
def whole(folder: Path) -> RunDirectory:
    return experiment.train(check(raw(folder, "whole")))


@pytest.fixture(scope="module")
def resumed(folder: Path) -> RunDirectory:
    """Broken off after step 5, with the last checkpoint after step 4."""
    Stopping.on = True
    try:
        with pytest.raises(MeasurementError, match="stopped by the test"):
            experiment.train(check(raw(folder, "resumed")))
    finally:
        Stopping.on = False
    run = RunDirectory(folder / "runs" / "resumed")
    assert torch.load(run.checkpoint, weights_only=True)["global_step"] == 4
    for kind in ("trajectory", "activations"):
        late = run.path / kind / "step-00000005.safetensors"
        assert late.is_file()
        late.rename(late.with_name("step-00000009.safetensors"))  # as of a longer attempt
    return experiment.train(check(raw(folder, "resumed")))


@pytest.mark.parametrize("kind", KEPT)
def test_same_numbers(whole: RunDirectory, resumed: RunDirectory, kind: str) -> None:
    assert logged(resumed, kind) == logged(whole, kind)


@pytest.mark.parametrize("kind", ["trajectory", "activations"])
def test_same_files(whole: RunDirectory, resumed: RunDirectory, kind: str) -> None:
    names = [f"step-{step:08d}.safetensors" for step in range(STEPS + 1)]
    for run in (whole, resumed):
        assert sorted(path.name for path in (run.path / kind).iterdir()) == names
    for name in names:
        one, other = (load_file(run.path / kind / name) for run in (whole, resumed))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_same_history(whole: RunDirectory, resumed: RunDirectory) -> None:
    assert resumed.read_table("monitor") == whole.read_table("monitor")
    assert whole.read_table("monitor")["steps"] == list(range(STEPS + 1))


def test_snapshots_are_the_adapter(whole: RunDirectory) -> None:
    folder = whole.path / "trajectory"
    first, last = (load_file(snapshot_path(folder, step)) for step in (0, STEPS))
    adapter = load_file(whole.path / "adapter" / "adapter_model.safetensors")
    assert all(not bool(value.any()) for value in first.values())  # B starts at zero
    for name, value in last.items():
        peft = f"base_model.model.{name.removesuffix('.lora_B')}.lora_B.weight"
        assert torch.equal(value, adapter[peft])
    assert len(last) * 2 == len(adapter)


def test_rotation_is_that_of_the_snapshots(whole: RunDirectory) -> None:
    found = read_trajectory(whole.path / "trajectory", "whole")
    steps, cosines = rotation(found)
    rows = [row for row in logged(whole, "trajectory") if "rotation" in row][: len(cosines)]
    assert [row["step"] - 1 for row in rows] == steps
    assert [row["rotation"] for row in rows] == pytest.approx(cosines)
    norms = [row["norm"] for row in logged(whole, "trajectory")]
    assert norms[: STEPS + 1] == pytest.approx([float(point.norm()) for point in found.points])


def test_a_run_that_starts_anew_keeps_no_snapshot(folder: Path) -> None:
    Stopping.on = True
    stopping = {"_target_": "tests.callbacks.stopping.Stopping", "step": 1}
    callbacks: dict[str, Any] = {"trajectory": {"every_n_steps": 1}, "stopping": stopping}
    try:
        with pytest.raises(MeasurementError):
            experiment.train(check(tiny_pairs(folder, name="anew", callbacks=callbacks)))
    finally:
        Stopping.on = False
    path = folder / "runs" / "anew" / "trajectory"
    assert [file.name for file in path.iterdir()] == ["step-00000001.safetensors"]
    changed = tiny_pairs(folder, name="anew", callbacks={"trajectory": {}}, seed=1)
    experiment.train(check(changed))  # nothing was trained, so another configuration may have the name
    assert sorted(file.name for file in path.iterdir()) == [f"step-{step:08d}.safetensors" for step in (0, 4)]
