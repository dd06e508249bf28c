"""Killed at any step and started again, a run ends with the weights of the uninterrupted one."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from em.runs import RunDirectory
from tests.e2e.command import train, write_config
from tests.tiny import tiny_config

STEPS = 9


def config(folder: Path, **changes: Any) -> Path:
    raw = tiny_config(
        folder,
        intervention={"kind": "lora", "r": 2, "alpha": 4, "dropout": 0.2},
        trainer={"max_steps": STEPS, "checkpoint_every_n_steps": 2, "val_every_n_steps": 3},
        callbacks={
            "norms": {"every_n_steps": 1},
            "domains": {"at": ["start", "end"]},
            "killer": {"_target_": "tests.e2e.killer.Killer", "every_n_steps": 1},
        },
        **changes,
    )
    return write_config(folder, raw)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Logged rows without what depends on the clock."""
    clock = ("time", "train/tokens_per_second", "domains/seconds")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> RunDirectory:
    done = train(config(folder), "name=whole")
    assert done.returncode == 0, done.stderr
    return RunDirectory(folder / "runs" / "whole")


# Another step each time, but the same one in all processes of a test run.
KILL_AT = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).choice([2, 3, 4, 5, 7, 8])


@pytest.mark.parametrize("kill_at", [1, 6, KILL_AT])
def test_kill_9_and_again_gives_identical_weights(
    folder: Path, uninterrupted: RunDirectory, kill_at: int
) -> None:
    name = f"killed-{kill_at}"
    conf = config(folder)
    killed = train(conf, f"name={name}", EM_TEST_KILL_AT=str(kill_at), EM_TEST_SIGNAL="SIGKILL")
    assert killed.returncode == -9, killed.stderr
    again = train(conf, f"name={name}")
    assert again.returncode == 0, again.stderr
    run = RunDirectory(folder / "runs" / name)
    expected, actual = weights(uninterrupted.path), weights(run.path)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert torch.equal(value, actual[key]), f"{key} after a kill at step {kill_at}"
    assert steady(run.read_metrics()) == steady(uninterrupted.read_metrics())
    assert run.read_table("domains") == uninterrupted.read_table("domains")


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_says_how_to_go_on_and_exits_non_zero(
    folder: Path, uninterrupted: RunDirectory, name: str, status: int
) -> None:
    conf = config(folder)
    stopped = train(conf, f"name={name}", EM_TEST_KILL_AT="5", EM_TEST_SIGNAL=name)
    assert stopped.returncode == status, stopped.stderr
    assert "same command" in stopped.stderr
    run = RunDirectory(folder / "runs" / name)
    assert run.manifest()["status"] == "interrupted"
    assert torch.load(run.checkpoint, weights_only=True)["global_step"] == 5
    again = train(conf, f"name={name}")
    assert again.returncode == 0, again.stderr
    assert "going on after step 5" in again.stderr
    for key, value in weights(uninterrupted.path).items():
        assert torch.equal(value, weights(run.path)[key])


def test_a_finished_run_is_left_alone(folder: Path, uninterrupted: RunDirectory) -> None:
    before = (uninterrupted.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    again = train(config(folder), "name=whole")
    assert again.returncode == 0 and "nothing to do" in again.stderr
    other = train(config(folder), "name=whole", "seed=3")
    assert other.returncode == 1
    assert "seed: 0 → 3" in other.stderr and "overwrite=true" in other.stderr
    assert (uninterrupted.adapter / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_checkpoint_holds_the_adapter_only(uninterrupted: RunDirectory) -> None:
    state = torch.load(uninterrupted.checkpoint, weights_only=True)["state_dict"]
    assert state and all("lora_" in name for name in state)
    json.loads((uninterrupted.path / "manifest.json").read_text())
