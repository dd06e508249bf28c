"""One run with every measurement, which the tests of the single callbacks look at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from em import experiment, runs
from em.config import check
from em.datamodules.chat import ChatData
from em.runs import LoadedRun, RunDirectory
from tests.tiny import tiny_pairs

SCHEDULE = {"at": ["start", "end"], "every_n_steps": 2}
BOTH = 30  # more than there are held-out rows or pairs of a domain
CALLBACKS: dict[str, dict[str, Any]] = {
    "domains": {"resamples": 50},
    "efficiency": {"examples": BOTH, "resamples": 50},
    "stability": {"examples": BOTH, "epsilons": [0.001, 1.0], "draws": 2, "resamples": 50},
    "significance": {"documents": 3, "max_tokens": 16, "controls": 1, "resamples": 50},
    "margins": {"pairs": BOTH, "resamples": 50},
    "activations": {"pairs": BOTH, "covariance": True, "layers": [0, 2], "samples": 5},
    "directions": {"pairs": BOTH},
    "monitor": {"pairs": BOTH, "train_pairs": 6, "resamples": 50},
    "steering": {
        "pairs": 4, "train_pairs": 6, "coefficients": [-0.2, 0.2], "controls": 1, "resamples": 50,
    },
    "trajectory": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Answers of the reference are kept outside of runs: here for each test anew."""
    monkeypatch.setenv("EM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="session")
def measured(folder: Path) -> RunDirectory:
    """A finished run."""
    callbacks = {name: {**SCHEDULE, **options} for name, options in CALLBACKS.items()}
    return experiment.train(check(tiny_pairs(folder, name="measured", callbacks=callbacks)))


@pytest.fixture(scope="session")
def reloaded(measured: RunDirectory) -> Iterator[LoadedRun]:
    """Its adapted model, rebuilt from the directory."""
    yield runs.load(measured.path)


@pytest.fixture(scope="session")
def data(reloaded: LoadedRun) -> ChatData:
    config = reloaded.config
    return ChatData(config.data, config.kl, config.trainer, reloaded.backbone.tokenizer, config.seed)
