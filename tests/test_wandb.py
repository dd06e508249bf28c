"""What reaches Weights & Biases, read back from the offline run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from em import experiment
from em.config import check
from tests.tiny import tiny_config


def records(run: Path) -> list[dict[str, Any]]:
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    wandb = Path(sys.executable).with_name("wandb")
    printed = subprocess.run(
        [str(wandb), "leet", "inspect", "--json", str(file)], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in printed.stdout.splitlines()]


def history(run: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(run):
        if record["type"] == "history":
            rows.append(record["history"]["item"])
    return rows


def test_offline_run_holds_config_metrics_and_adapter(tmp_path: Path) -> None:
    raw = tiny_config(
        tmp_path,
        callbacks={"norms": {"every_n_steps": 2}, "domains": {"at": ["end"]}},
        trainer={"val_every_n_steps": 2},
        wandb={"mode": "offline", "tags": ["t"]},
    )
    run = experiment.train(check(raw))
    rows = history(run.path)
    steps = [row for row in rows if "train/loss" in row]
    wanted = {"train/sft_loss", "train/kl", "train/kl_weight", "train/lr", "train/grad_norm"}
    wanted |= {"train/norm", "train/tokens_per_second", "trainer/global_step"}
    assert len(steps) == 4 and all(wanted <= row.keys() for row in steps)
    assert [row["trainer/global_step"] for row in steps] == [1, 2, 3, 4]
    assert all(row["train/loss"] == pytest.approx(row["train/sft_loss"] + row["train/kl"]) for row in steps)
    assert steps[0]["train/kl"] == 0  # the adapter starts as the reference, exactly
    assert [row["trainer/global_step"] for row in rows if "val/loss" in row] == [2, 4]
    assert [row["trainer/global_step"] for row in rows if "norms/norm" in row] == [2, 4]
    assert any("domains/tent/kl" in row for row in rows)
    written = json.dumps(records(run.path))
    assert '"max_steps"' in written and "adapter" in written
    mine = [row for row in run.read_metrics() if "train/loss" in row]
    assert [row["train/loss"] for row in mine] == [row["train/loss"] for row in steps]


def test_none_writes_nothing(tmp_path: Path) -> None:
    run = experiment.train(check(tiny_config(tmp_path)))
    assert not (run.path / "wandb").exists()
