"""Margins: of the pairs of every domain, and refused before training without any."""

from pathlib import Path

import numpy as np
import pytest

from em import experiment
from em.config import check
from em.datamodules.chat import ChatData
from em.errors import ConfigError
from em.loading import load_backbone
from em.measurements.margins import PairPanel
from em.runs import LoadedRun, RunDirectory
from tests.callbacks.logged import logged
from tests.tiny import tiny_config, tiny_pairs


def test_margins_are_those_of_the_pairs(measured: RunDirectory, reloaded: LoadedRun, data: ChatData) -> None:
    last = logged(measured, "margins")[-1]
    shifts = {}
    for domain, pairs in data.pairs("held_out")[0].items():
        panel = PairPanel(reloaded.backbone, pairs)
        own = panel.losses().margin_P.mean()
        with reloaded.intervention.disabled():
            shifts[domain] = own - panel.losses().margin_P.mean()
        assert last[f"{domain}/margin"] == pytest.approx(own, abs=1e-6)
        assert last[f"{domain}/shift"] == pytest.approx(shifts[domain], abs=1e-6)
    assert last["narrowness"] == pytest.approx(shifts["tent"] / shifts["soup"], abs=1e-4)
    assert logged(measured, "margins")[0]["soup/shift"] == 0


def test_table_and_figures(measured: RunDirectory) -> None:
    table = measured.read_table("margins")
    assert table["training"] == "soup" and [row["domain"] for row in table["domains"]] == ["soup", "tent"]
    assert table["narrowness"]["measured"]["value"] == logged(measured, "margins")[-1]["narrowness"]
    for name in ("margins", "narrowness"):
        assert (measured.path / "figures" / f"{name}.svg").read_text().startswith("<")
        assert (measured.path / "figures" / f"{name}.png").read_bytes()[1:4] == b"PNG"


def test_one_paired_domain_has_no_narrowness(folder: Path) -> None:
    raw = tiny_pairs(folder, name="alone", callbacks={"margins": {"pairs": 3, "resamples": 50}})
    del raw["data"]["pairs"]["tent"]
    (row,) = logged(experiment.train(check(raw)), "margins")
    assert row.keys() == {"step", "soup/margin", "soup/shift"} and np.isfinite(row["soup/shift"])


def test_without_pairs_nothing_is_trained_and_the_backbone_is_given_back(folder: Path) -> None:
    raw = tiny_config(folder, name="no-pairs", callbacks={"margins": {}, "monitor": {"layer": 1}})
    config = check(raw)
    backbone = load_backbone(config.backbone)
    names = [name for name, _ in backbone.named_parameters()]
    with pytest.raises(ConfigError) as error:
        experiment.train(config, backbone)
    assert len(error.value.problems) == 2
    for name, line in zip(("margins", "monitor"), error.value.problems, strict=True):
        assert line.startswith(f"callbacks.{name}.domain: ") and "data.pairs.soup" in line
    assert [name for name, _ in backbone.named_parameters()] == names
    run = RunDirectory(folder / "runs" / "no-pairs")
    assert run.manifest()["status"] == "failed" and not run.metrics.exists()
