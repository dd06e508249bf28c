"""Activations: what is saved are the moments of the adapted model."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from em.callbacks.activations import Activations
from em.datamodules.chat import ChatData
from em.datamodules.pairs import SIDES, pair_rows
from em.errors import ConfigError
from em.hooks import Site
from em.measurements.activations import collect
from em.runs import LoadedRun, RunDirectory
from tests.callbacks.logged import logged


def test_saved_moments(measured: RunDirectory, reloaded: LoadedRun, data: ChatData) -> None:
    path = measured.path / "activations" / "step-00000004.safetensors"
    saved = load_file(path)
    pairs, sites = data.pairs("held_out")[0]["soup"], [Site(0), Site(2)]
    groups = {side: pair_rows(pairs, 3, data.pad, side, range(len(pairs))) for side in SIDES}
    seed = reloaded.config.seed
    found = collect(reloaded.backbone, groups, sites, covariance=True, samples=5, seed=seed)
    for side in SIDES:
        assert saved[f"{side}.count"] == found[side].counts.sum()
        for site in sites:
            torch.testing.assert_close(saved[f"{side}.{site}.mean"], found[side].mean(site).float())
            expected = found[side].covariance(site).float()
            torch.testing.assert_close(saved[f"{side}.{site}.covariance"], expected, rtol=1e-4, atol=1e-6)
            samples = found[side].samples
            assert samples is not None and samples.hidden[site].shape == (5, 32)
            torch.testing.assert_close(saved[f"{side}.{site}.samples"], samples.hidden[site])
    assert len(saved) == 2 * (1 + 2 * 3)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["em"])
    assert record["step"] == 4 and record["domain"] == "soup" and record["pairs"] == len(pairs)
    last = logged(measured, "activations")[-1]
    difference = saved["careless.2.block.mean"] - saved["careful.2.block.mean"]
    assert last["difference_norm"] == pytest.approx(float(difference.norm()), rel=1e-5)
    assert -1 <= last["split_half"] <= 1


def test_at_every_scheduled_step(measured: RunDirectory) -> None:
    files = sorted(path.name for path in (measured.path / "activations").iterdir())
    assert files == [f"step-{step:08d}.safetensors" for step in (0, 2, 4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [0, 3]}, "layers 0 to 2, got 3"),
        ({"layers": []}, "layers: is empty"),
        ({"pairs": 1}, "pairs"),
        ({"samples": -1}, "samples"),
    ],
)
def test_options_that_cannot_be_measured(
    reloaded: LoadedRun, data: ChatData, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Activations(**options).prepare(reloaded.backbone, data)
