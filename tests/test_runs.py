"""A run directory alone rebuilds the adapted model, and is never damaged."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from em import experiment, runs
from em.building import run_directory
from em.config import check
from em.datamodules.chat import ChatData
from em.datamodules.rows import collate
from em.errors import AdapterError, DataError, RunError
from em.loading import load_backbone
from em.runs import RunDirectory, differences
from tests.tiny import save_tiny, tiny_config

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "r": 2},
    "steering_vector": {"kind": "steering_vector", "layer": 1, "scale": 8},
    "full_finetune": {"kind": "full_finetune"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_load_gives_back_the_adapted_model(tmp_path: Path, kind: str) -> None:
    optimizer = {"lr": 1.0e-3}
    raw = tiny_config(tmp_path, intervention=KINDS[kind], optimizer=optimizer, callbacks={"domains": {}})
    run = experiment.train(check(raw))
    loaded = runs.load(run.path)
    rows = {row["domain"]: row for row in run.read_table("domains")["domains"]}
    config = check(raw)
    data = ChatData(config.data, config.kl, config.trainer, loaded.backbone.tokenizer, config.seed)
    batch = collate(data.domains["tent"], range(len(data.domains["tent"])), data.pad)
    with torch.no_grad():
        logits = loaded.backbone.logits(loaded.backbone.trunk(batch.input_ids_BT)[batch.predicts_BT])
    loss = float(torch.nn.functional.cross_entropy(logits, batch.targets_N))
    assert loss == pytest.approx(rows["tent"]["loss"], abs=1e-5)
    assert abs(loss - rows["tent"]["loss_reference"]) > 1e-4
    assert loaded.intervention.norm() == pytest.approx(run.manifest()["norm"], rel=1e-6)


def test_load_refuses_what_is_not_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no readable config\.yaml"):
        runs.load(tmp_path)
    run = experiment.train(check(tiny_config(tmp_path)))
    run.update_manifest(status="interrupted")
    with pytest.raises(RunError, match="run its training command to the end"):
        runs.load(run.path)


def test_an_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    run = experiment.train(check(tiny_config(tmp_path)))
    other = load_backbone(
        check(tiny_config(tmp_path)).backbone.__class__(model=str(save_tiny(tmp_path / "b", seed=5)))
    )
    with pytest.raises(AdapterError, match=r"trained on .*model.*but the backbone here is"):
        runs.load(run.path, other)


def test_manifest_says_what_produced_the_run(tmp_path: Path) -> None:
    run = experiment.train(check(tiny_config(tmp_path)))
    manifest = run.manifest()
    assert manifest["status"] == "finished" and manifest["steps"] == manifest["step"] == 4
    source = manifest["data"]["train"][0]
    assert len(source["sha256"]) == 64 and source["rows"] == 40 and source["used"] > 25
    assert manifest["versions"]["torch"] and manifest["hardware"]["cores"]
    assert manifest["seeds"] == {"seed": 0, "split_seed": 0}
    assert manifest["wall_seconds"] > 0 and manifest["tokens_seen"] > 0


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    config = check(tiny_config(tmp_path))
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not a run"):
        experiment.train(config)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_two_processes_cannot_share_a_directory(tmp_path: Path) -> None:
    config = check(tiny_config(tmp_path))
    with (
        run_directory(config).locked(),
        pytest.raises(RunError, match="in use by another process"),
    ):
        experiment.train(config)


def test_a_run_that_never_trained_does_not_block_its_name(tmp_path: Path) -> None:
    raw = tiny_config(tmp_path, data={"train": [{"path": str(tmp_path / "bad.jsonl")}]})
    (tmp_path / "bad.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:1: not JSON"):
        experiment.train(check(raw))
    assert RunDirectory(tmp_path / "runs" / "tiny").manifest()["status"] == "failed"
    run = experiment.train(check(tiny_config(tmp_path)))
    assert run.manifest()["status"] == "finished" and "error" in run.manifest()


def test_neutral_keys_do_not_make_another_run() -> None:
    old = {"seed": 0, "wandb": {"mode": "none"}, "kl": {"weight": 1}}
    assert differences(old, {**old, "wandb": {"mode": "online"}}) == []
    assert differences(old, {**old, "kl": {"weight": 2}}) == ["kl.weight: 1 → 2"]


def test_full_disk_while_saving_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny_config(tmp_path, trainer={"checkpoint_every_n_steps": 1})
    real, calls = os.fsync, []

    def full_after_three(descriptor: int) -> None:
        calls.append(descriptor)
        if "last.ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            full_after_three.checkpoints += 1  # type: ignore[attr-defined]
            if full_after_three.checkpoints == 3:  # type: ignore[attr-defined]
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    full_after_three.checkpoints = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "fsync", full_after_three)
    with pytest.raises(RunError, match=r"No space left on device\); free some space"):
        experiment.train(check(raw))
    run = RunDirectory(tmp_path / "runs" / "tiny")
    assert torch.load(run.checkpoint, weights_only=True)["global_step"] == 2
    assert run.manifest()["status"] == "failed"
    assert not list(run.path.rglob("*.tmp"))
    monkeypatch.setattr(os, "fsync", real)
    again = experiment.train(check(raw))
    assert again.manifest()["status"] == "finished" and again.manifest()["error"] is None
    whole = experiment.train(check({**raw, "name": "whole"}))
    for name in ("adapter_model.safetensors",):
        assert (again.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()


def test_nothing_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = "sk-planted-4f1c9e"
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, planted)
    run = experiment.train(check(tiny_config(tmp_path, wandb={"mode": "offline"})))
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [str(path) for path in files if planted.encode() in path.read_bytes()]
    json.loads((run.path / "manifest.json").read_text())
