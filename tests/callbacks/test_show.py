"""Figures of a callback: files at the end, and images with their tables in Weights & Biases."""

import sys
from pathlib import Path

import pytest

from em import experiment
from em.config import check
from em.runs import RunDirectory
from tests.test_wandb import history
from tests.tiny import tiny_pairs

SMALL = {"pairs": 4, "resamples": 50}


def test_wandb_has_image_and_table_of_each_time(tmp_path: Path) -> None:
    options = {"margins": {**SMALL, "every_n_steps": 4, "at": ["end"]}}
    raw = tiny_pairs(tmp_path, callbacks=options, wandb={"mode": "offline", "log_adapter": False})
    run = experiment.train(check(raw))
    rows = history(run.path)
    images = [row for row in rows if row.get("margins/narrowness._type") == "images/separated"]
    tables = [row for row in rows if row.get("margins/narrowness/table._type") == "table-file"]
    assert [row["trainer/global_step"] for row in images] == [4, 4]
    assert [row["trainer/global_step"] for row in tables] == [4, 4]
    assert tables[0]["margins/narrowness/table.ncols"] == 7
    assert list(run.path.glob("wandb/offline-run-*/files/media/images/margins/narrowness_*.png"))


def test_without_wandb_only_the_end_is_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    options = {"mine": {"kind": "margins", **SMALL, "at": ["start", "end"]}}
    run = experiment.train(check(tiny_pairs(folder, name="files", callbacks=options)))
    assert sorted(path.name for path in (run.path / "figures").iterdir()) == [
        "mine-margins.png",
        "mine-margins.svg",
        "mine-narrowness.png",
        "mine-narrowness.svg",
    ]
    assert run.table("mine").is_file()


def test_every_measurement_has_its_figure(measured: RunDirectory) -> None:
    names = {path.stem for path in (measured.path / "figures").glob("*.svg")}
    assert {"efficiency", "stability", "significance", "margins", "cosines", "monitor", "steering"} <= names
