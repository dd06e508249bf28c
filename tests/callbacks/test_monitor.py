"""Monitor: projections of held-out answers on a planted, a given and a found direction."""

from pathlib import Path
from typing import Any

import pytest
import torch

from em import experiment
from em.config import check
from em.datamodules.chat import ChatData
from em.datamodules.pairs import SIDES, pair_rows
from em.errors import ConfigError, EmError
from em.hooks import Site
from em.interventions.direction import Direction
from em.measurements.activations import collect
from em.runs import LoadedRun, RunDirectory
from tests.callbacks.logged import logged
from tests.tiny import tiny_pairs


def train(folder: Path, name: str, **options: Any) -> RunDirectory:
    options = {"pairs": 6, "train_pairs": 6, "resamples": 50, **options}
    return experiment.train(check(tiny_pairs(folder, name=name, callbacks={"monitor": options})))


def test_without_a_file_it_finds_the_direction(
    measured: RunDirectory, reloaded: LoadedRun, data: ChatData
) -> None:
    backbone, site = reloaded.backbone, Site(1)

    def groups(part: Any, limit: int | None) -> dict[str, Any]:
        pairs = data.pairs(part, limit, ["soup"])[0]["soup"]
        return {side: pair_rows(pairs, 4, data.pad, side, range(len(pairs))) for side in SIDES}

    with reloaded.intervention.disabled():
        found = collect(backbone, groups("train", 6), [site])
    vector = found["careless"].mean(site) - found["careful"].mean(site)
    held_out = collect(backbone, groups("held_out", None), [site], weighting="answer")
    last = logged(measured, "monitor")[-1]
    for side in SIDES:
        expected = float(held_out[side].mean(site) @ (vector / vector.norm()))
        assert last[side] == pytest.approx(expected, abs=1e-5)
    assert 0 <= last["auroc_low"] <= last["auroc"] <= last["auroc_high"] <= 1


def test_planted_direction(folder: Path, measured: RunDirectory, reloaded: LoadedRun) -> None:
    # The mean difference of the very answers that are measured, and its opposite.
    found = Direction.load(measured.path / "directions" / "mean-difference.safetensors").only([Site(2)])
    opposite = Direction({site: -vector for site, vector in found.vectors.items()}, found.origin)
    for name, direction, auroc in (("planted", found, 1.0), ("opposite", opposite, 0.0)):
        direction.save(folder / f"{name}.safetensors")
        run = train(folder, name, direction=str(folder / f"{name}.safetensors"))
        (row,) = logged(run, "monitor")
        assert row["auroc"] == row["auroc_low"] == row["auroc_high"] == auroc
        table = run.read_table("monitor")
        assert table["site"] == "2.block" and table["steps"] == [4]
        assert table["careless"]["mean"] == [row["careless"]]


def saved(folder: Path, width: int, **origin: Any) -> str:
    path = folder / f"direction-{width}.safetensors"
    Direction({Site(0): torch.ones(width), Site(2): torch.ones(width)}, origin).save(path)
    return str(path)


def test_what_does_not_fit_is_refused_before_training(folder: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"direction": saved(folder, 8)}, "has width 8, but .* has width 32"),
        ({"direction": str(folder / "absent.safetensors")}, "absent.safetensors: cannot be read"),
        ({"direction": saved(folder, 32)}, "no vector at 1.block, only at 0.block, 2.block"),
        ({"layer": 5}, "has layers 0 to 2, got 5"),
        (
            {"domain": "rice"},
            r"callbacks.monitor.domain: rice has no .* add .* data.pairs.rice, or set domain",
        ),
        ({"pairs": 0}, "callbacks.monitor.pairs: expected at least 2, got 0"),
    ]
    for number, (options, words) in enumerate(cases):
        with pytest.raises(EmError, match=words) as error:
            train(folder, f"refused-{number}", **options)
        assert isinstance(error.value, ConfigError) and "callbacks.monitor" in str(error.value)
        assert not (folder / "runs" / f"refused-{number}" / "checkpoints").exists()
