"""Two processes give the weights of one: DDP and FSDP2 on CPU, and any micro-batching."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from em import experiment
from em.config import Experiment, load
from em.runs import RunDirectory
from tests.e2e.command import train, write_config
from tests.tiny import tiny_config

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "r": 2, "alpha": 4},
    "full_finetune": {"kind": "full_finetune"},
    "steering_vector": {"kind": "steering_vector", "layer": 1, "scale": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EM_CACHE", str(tmp_path))


def config(folder: Path, kind: str, name: str) -> Path:
    # 34 training rows and 8 a step: the epoch ends in a short window.
    # FSDP2 cannot switch a full finetune off in training, so that kind goes without the KL term.
    full = kind == "full_finetune"
    raw = tiny_config(
        folder,
        kl={"weight": 0.0 if full else 1.0},
        optimizer={"lr": 1.0e-4 if full else 1.0e-2},
        intervention=KINDS[kind],
        data={"batch_size": 8, "micro_batch_size": 8, "train": [{"path": str(folder / "train.jsonl")}]},
        trainer={"epochs": 1.0, "max_steps": None, "val_every_n_steps": 2},
        callbacks={"domains": {"at": ["end"]}, "norms": {"every_n_steps": 2}},
    )
    return write_config(folder, raw, f"{name}.yaml")


def run(folder: Path, kind: str, name: str, *overrides: str) -> RunDirectory:
    """Two processes need the command; one is trained here, which saves the start of an interpreter."""
    conf = config(folder, kind, name)
    if "trainer.devices=2" in overrides:
        done = train(conf, f"name={name}", *overrides)
        assert done.returncode == 0, done.stderr
    else:
        loaded = load(conf, [f"name={name}", *overrides])
        assert isinstance(loaded, Experiment)
        experiment.train(loaded.config)
    return RunDirectory(folder / "runs" / name)


def adapter(directory: RunDirectory) -> dict[str, torch.Tensor]:
    (path,) = directory.adapter.glob("*.safetensors")
    return load_file(path)


@pytest.fixture(scope="module")
def one_process(folder: Path) -> dict[str, RunDirectory]:
    return {kind: run(folder, kind, f"one-{kind}") for kind in KINDS}


TWO = "trainer.devices=2"
EXACT = 2e-6  # of losses near 6: a few roundings
VARIANTS = {
    "accumulate-4": ["data.micro_batch_size=2"],
    "ddp-accumulate-2": [TWO, "trainer.strategy=ddp", "data.micro_batch_size=2"],
    "fsdp2": [TWO, "trainer.strategy=fsdp2", "data.micro_batch_size=4"],
}
# A pair of processes costs half a minute: DDP treats all kinds alike, so one kind is enough there.
CASES = [(variant, kind) for variant in VARIANTS for kind in KINDS if variant[:3] != "ddp" or kind == "lora"]


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_equal_to_one_process(
    folder: Path, one_process: dict[str, RunDirectory], kind: str, variant: str
) -> None:
    other = run(folder, kind, f"{variant}-{kind}", *VARIANTS[variant])
    expected, actual = adapter(one_process[kind]), adapter(other)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=EXACT)
    mine, theirs = (gradients(directory) for directory in (one_process[kind], other))
    assert len(mine) == len(theirs) and max(float(gradient.abs().max()) for gradient in mine) > 1e-3
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=EXACT)
    tables = (directory.read_table("domains")["domains"] for directory in (one_process[kind], other))
    for row, counterpart in zip(*tables, strict=True):
        assert [r["where"] for r in row["rows"]] == [r["where"] for r in counterpart["rows"]]
        assert row["loss"] == pytest.approx(counterpart["loss"], abs=EXACT)
        assert row["kl"] == pytest.approx(counterpart["kl"], abs=EXACT)
    for step, (a, b) in enumerate(zip(*(steps(d) for d in (one_process[kind], other)), strict=True), 1):
        assert a == pytest.approx(b, abs=EXACT), f"step {step}"
    assert values(other, "val/loss") == pytest.approx(values(one_process[kind], "val/loss"), abs=EXACT)


def test_fsdp2_stops_and_goes_on(folder: Path, one_process: dict[str, RunDirectory]) -> None:
    conf = config(folder, "lora", "fsdp2-stopped")
    text = yaml.safe_load(conf.read_text())
    text["callbacks"]["killer"] = {"_target_": "tests.e2e.killer.Killer", "every_n_steps": 1}
    conf.write_text(yaml.safe_dump(text))
    arguments = ["name=fsdp2-stopped", *VARIANTS["fsdp2"]]
    stopped = train(conf, *arguments, EM_TEST_KILL_AT="2", EM_TEST_SIGNAL="SIGTERM")
    assert stopped.returncode == 143, stopped.stderr
    directory = RunDirectory(folder / "runs" / "fsdp2-stopped")
    state = torch.load(directory.checkpoint, weights_only=True)["state_dict"]
    assert state and all("lora_" in name for name in state)
    again = train(conf, *arguments)
    assert again.returncode == 0 and "going on after step 2" in again.stderr, again.stderr
    expected, actual = adapter(one_process["lora"]), adapter(directory)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=EXACT)


def gradients(directory: RunDirectory) -> list[torch.Tensor]:
    """Adam's moving averages of the gradients over the run, from the last checkpoint."""
    (state,) = torch.load(directory.checkpoint, weights_only=True)["optimizer_states"]
    # FSDP2 numbers all parameters, one process only the trained ones; their order is the same.
    values = [state["state"][key] for key in sorted(state["state"])]
    return [value["exp_avg"] for value in values if "exp_avg" in value]


def steps(directory: RunDirectory) -> list[tuple[float, float, float]]:
    rows = [row for row in directory.read_metrics() if "train/loss" in row]
    return [(row["train/sft_loss"], row.get("train/kl", 0.0), row["train/grad_norm"]) for row in rows]


def values(directory: RunDirectory, key: str) -> list[float]:
    return [row[key] for row in directory.read_metrics() if key in row]
