"""Every callback kind: training with it and without it ends in the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from em import experiment
from em.config import check
from em.config.build import kinds
from em.errors import EmError
from em.runs import RunDirectory
from tests.tiny import tiny_pairs

WORDY = {"_target_": "tests.evaluation.judges.Wordy"}
# What a kind needs beyond its schedule; a new kind without required options needs no entry.
OPTIONS: dict[str, dict[str, Any]] = {
    "activations": {"pairs": 6, "covariance": True},
    "directions": {"pairs": 6},
    "domains": {"resamples": 50},
    "efficiency": {"examples": 4, "factors": [0.0, 2.0], "resamples": 50},
    "judge_eval": {"judge": WORDY, "samples": 1, "max_tokens": 3, "resamples": 100},
    "margins": {"pairs": 4, "resamples": 50},
    "monitor": {"pairs": 4, "train_pairs": 6, "resamples": 50},
    "significance": {"documents": 3, "max_tokens": 16, "factors": [2.0], "controls": 1, "resamples": 50},
    "stability": {"examples": 4, "epsilons": [0.5, 1.0], "draws": 2, "resamples": 50},
    "steering": {"pairs": 4, "train_pairs": 6, "coefficients": [0.2], "controls": 1, "resamples": 50},
}
SCHEDULE = {"at": ["start", "end"], "every_n_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("callbacks")


def train(folder: Path, name: str, callbacks: dict[str, Any], **changes: Any) -> RunDirectory:
    # Dropout makes the weights depend on every random number that a callback might take.
    lora = {"kind": "lora", "r": 2, "alpha": 4, "dropout": 0.3}
    raw = tiny_pairs(folder, name=name, callbacks=callbacks, intervention=lora, **changes)
    return experiment.train(check(raw))


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def without(folder: Path) -> RunDirectory:
    return train(folder, "without", {})


@pytest.mark.parametrize("kind", kinds("callbacks"))
def test_training_cannot_tell(folder: Path, without: RunDirectory, kind: str) -> None:
    run = train(folder, f"with-{kind}", {kind: {**SCHEDULE, **OPTIONS.get(kind, {})}})
    expected, actual = weights(without), weights(run)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    logged = [row["step"] for row in run.read_metrics() if any(key.startswith(f"{kind}/") for key in row)]
    assert logged == [0, 1, 2, 3, 4, 4]


def test_isolation_survives_a_rude_callback(folder: Path, without: RunDirectory) -> None:
    run = train(folder, "rude", {"rude": {"_target_": "tests.callbacks.rude.Rude", **SCHEDULE}})
    expected, actual = weights(without), weights(run)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_failure_policy(folder: Path) -> None:
    failing = {"_target_": "tests.callbacks.rude.Failing", "at": ["start"]}
    run = train(folder, "warned", {"failing": {**failing, "on_error": "warn"}})
    assert run.manifest()["status"] == "finished"
    assert "no misaligned answer" in (run.path / "log.txt").read_text()
    with pytest.raises(EmError, match="no misaligned answer"):
        train(folder, "raised", {"failing": failing})
    assert RunDirectory(folder / "runs" / "raised").manifest()["status"] == "failed"


def test_norms_turn_from_one(folder: Path) -> None:
    run = train(folder, "norms", {"norms": {"every_n_steps": 1}})
    rows = [row for row in run.read_metrics() if "norms/norm" in row]
    assert rows[0]["norms/cosine_to_start"] == pytest.approx(1.0)
    assert rows[-1]["norms/norm"] > rows[0]["norms/norm"] > 0
    assert -1 <= rows[-1]["norms/cosine_to_start"] < 1
    train_rows = [row for row in run.read_metrics() if "train/norm" in row]
    assert train_rows[-1]["train/norm"] == pytest.approx(rows[-1]["norms/norm"])


def test_a_callback_that_fails_at_the_end_can_be_taken_out(folder: Path, without: RunDirectory) -> None:
    failing = {"_target_": "tests.callbacks.rude.Failing", "at": ["end"]}
    with pytest.raises(EmError, match="no misaligned answer"):
        train(folder, "ended", {"failing": failing})
    run = train(folder, "ended", {"norms": {"at": ["end"]}})
    assert run.manifest()["status"] == "finished" and list(run.manifest()["config"]["callbacks"]) == ["norms"]
    assert "failing" not in (run.path / "config.yaml").read_text()
    expected, actual = weights(without), weights(run)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    with pytest.raises(EmError, match="another configuration"):
        train(folder, "ended", {})
