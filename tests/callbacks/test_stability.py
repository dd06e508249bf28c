"""Stability: no noise takes nothing, and without a gain there is nothing to take."""

from typing import Any

import pytest

from em.callbacks.stability import Stability
from em.errors import ConfigError
from em.runs import LoadedRun, RunDirectory
from tests.callbacks.logged import logged


def test_little_noise_takes_little_and_much_takes_much(measured: RunDirectory) -> None:
    row = measured.read_table("stability")["solutions"]["measured"]
    assert row["epsilons"] == [0.001, 1.0] and row["draws"] == 2
    assert abs(row["degradation"][0]) < 1 and row["degradation"][1] > 30
    last = logged(measured, "stability")[-1]
    assert last["degradation"] == row["degradation"][1]
    assert last["area"] == row["area"]["value"] and last["half_life"] == row["half_life"]["value"]


def test_without_a_gain_the_run_goes_on(measured: RunDirectory) -> None:
    first = logged(measured, "stability")[0]
    assert first == {"step": 0, "area": None, "half_life": None, "degradation": None}


@pytest.mark.parametrize("options", [{"epsilons": [0.0]}, {"epsilons": []}, {"draws": 0}])
def test_grids_that_cannot_be_measured_are_refused(
    reloaded: LoadedRun, data: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Stability(**options).prepare(reloaded.backbone, data)
