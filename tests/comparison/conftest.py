"""Runs that several test files compare; whoever damages one works on a copy."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from tests.comparison.trained import LORA_1, LORA_2, VECTOR, train

Runs = dict[str, Path]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="session")
def runs(folder: Path) -> Runs:
    """A vector, LoRAs of rank 1 and 2, a second seed of the latter, and one with a KL term."""
    return {
        "vector": train(folder, "arms/vector", intervention=VECTOR),
        "rank1": train(folder, "arms/rank1", intervention=LORA_1),
        "rank2": train(folder, "arms/rank2", intervention=LORA_2),
        "rank2-again": train(folder, "arms/rank2-again", intervention=LORA_2, seed=1),
        "narrow": train(folder, "arms/narrow", intervention=LORA_2, kl={"weight": 5.0}),
    }


@pytest.fixture
def copied(runs: Runs, tmp_path: Path) -> Callable[[str], Path]:
    """A run's own copy, to be damaged."""
    return lambda name: copytree(runs[name], tmp_path / "copies" / name)


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the loading of backbones; holds the models that were asked for."""
    asked: list[str] = []

    def load(config: object) -> None:
        asked.append(str(config))
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr("em.comparison.study.load_backbone", load)
    return asked
