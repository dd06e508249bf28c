"""Steering: the margin with the direction added, on top of the solution."""

import numpy as np
import pytest

from em.datamodules.chat import ChatData
from em.datamodules.pairs import SIDES, pair_rows
from em.hooks import Site
from em.interventions.direction import Direction
from em.interventions.steering import Steering
from em.measurements.activations import collect
from em.measurements.margins import PairPanel
from em.runs import LoadedRun, RunDirectory
from tests.callbacks.logged import logged


def test_shift_of_the_margin(measured: RunDirectory, reloaded: LoadedRun, data: ChatData) -> None:
    backbone, site = reloaded.backbone, Site(1)
    train = data.pairs("train", 6, ["soup"])[0]["soup"]
    groups = {side: pair_rows(train, 4, data.pad, side, range(len(train))) for side in SIDES}
    with reloaded.intervention.disabled():
        found = collect(backbone, groups, [site])
    direction = Direction({site: found["careless"].mean(site) - found["careful"].mean(site)})
    panel = PairPanel(backbone, data.pairs("held_out", 4, ["soup"])[0]["soup"])
    margin_P = panel.losses().margin_P
    last = logged(measured, "steering")[-1]
    for coefficient in (-0.2, 0.2):
        steering = Steering.given(direction, coefficient=coefficient, relative=True)
        steering.attach(backbone)
        expected = np.mean(panel.losses().margin_P - margin_P)
        steering.detach()
        assert abs(expected) > 1e-3
        assert last[f"shift_at_{coefficient:g}"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_table(measured: RunDirectory) -> None:
    table, last = measured.read_table("steering"), logged(measured, "steering")[-1]
    assert table["coefficients"] == [-0.2, 0.0, 0.2] and table["layer"] == 1 and table["pairs"] == 4
    for key, curve in (("shift", "direction"), ("random", "random")):
        assert table[curve]["shift"][1] == 0
        assert table[curve]["shift"][2] == pytest.approx(last[f"{key}_at_0.2"])
