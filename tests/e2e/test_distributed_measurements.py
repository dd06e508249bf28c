"""Every measurement of two processes gives what one gives, with the work divided between them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from em import experiment
from em.config import check
from em.errors import ConfigError
from em.runs import RunDirectory
from tests.e2e.command import train, write_config
from tests.tiny import tiny_pairs

WORDY = {"_target_": "tests.evaluation.judges.Wordy"}
# Numbers of pairs, rows and documents that two processes cannot divide.
MEASURED: dict[str, dict[str, Any]] = {
    "activations": {"pairs": 7, "covariance": True, "samples": 5},
    "directions": {"pairs": 7},
    "domains": {},
    "efficiency": {"examples": 7},
    "judge_eval": {"judge": WORDY, "samples": 1, "max_tokens": 8, "resamples": 100},
    "margins": {"pairs": 7},
    "monitor": {"pairs": 7, "train_pairs": 5, "at": ["start", "end"]},
    "norms": {"every_n_steps": 2},
    "significance": {"documents": 3, "max_tokens": 12, "controls": 1},
    "stability": {"examples": 7, "draws": 1, "epsilons": [0.5]},
    "steering": {"pairs": 5, "train_pairs": 5, "coefficients": [0.2], "controls": 1},
    "trajectory": {"every_n_steps": 2},
}
VECTOR = {"kind": "steering_vector", "layer": 1, "scale": 4}
# Fails in one process and warns: both stay in step, or what follows would not be equal.
LONELY = {"_target_": "tests.e2e.lonely.Lonely", "at": ["start", "end"], "on_error": "warn"}
TABLES = MEASURED.keys() - {"activations", "norms", "trajectory"}
# What needs the whole weights in each process; the rest gives the same under FSDP2.
WHOLE = ("judge_eval", "steering")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EM_CACHE", str(tmp_path))


def every_callback() -> set[str]:
    """Files of `em/callbacks`, each of which holds one measurement."""
    package = Path(experiment.__file__).parent / "callbacks"
    return {path.stem for path in package.glob("*.py")} - {"__init__", "base"}


def test_every_callback_is_measured_here() -> None:
    assert {name for name in every_callback() if name[0] != "_"} == MEASURED.keys()


def measured(folder: Path, name: str, two: str | None = None, **changes: Any) -> RunDirectory:
    """A run in a folder NAME/run, because tables call the solution by the last part of the name."""
    callbacks = {key: dict(value) for key, value in (changes.pop("callbacks", None) or MEASURED).items()}
    # A name behind the others: a configuration file has them in this order.
    counter = {"_target_": "tests.e2e.counter.Counter", "folder": str(folder / "counts" / name)}
    raw = tiny_pairs(folder, callbacks={**callbacks, "lonely": LONELY, "work": counter}, **changes)
    raw["data"]["micro_batch_size"] = 2
    raw["name"] = f"{name}/run"
    if two is None:
        experiment.train(check(raw))
    else:
        done = train(
            write_config(folder, raw, f"{name}.yaml"), "trainer.devices=2", f"trainer.strategy={two}"
        )
        assert done.returncode == 0, done.stderr
    return RunDirectory(folder / "runs" / name / "run")


@pytest.fixture(scope="module")
def one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return measured(folder, "one")


@pytest.fixture(scope="module")
def ddp(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return measured(folder, "ddp", "ddp")


def test_ddp_gives_the_tables_tensors_and_figures_of_one_process(
    one: RunDirectory, ddp: RunDirectory
) -> None:
    equal_runs(ddp, one, TABLES)
    figures = [sorted(path.name for path in (run.path / "figures").iterdir()) for run in (one, ddp)]
    assert figures[0] == figures[1] and len(figures[0]) > 10


def counts(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "counts" / name).glob("*.json"))]


def test_two_processes_divide_the_work_and_one_writes(
    folder: Path, one: RunDirectory, ddp: RunDirectory
) -> None:
    (alone,), (first, second) = counts(folder, "one"), counts(folder, "ddp")
    assert alone["tokens"].keys() == MEASURED.keys() - {"judge_eval", "norms", "trajectory"}
    for name, tokens in alone["tokens"].items():
        shares = first["tokens"][name], second["tokens"][name]
        assert sum(shares) == tokens and min(shares) > 0.2 * tokens, name
    assert alone["answers"]["own"] == alone["answers"]["reference"] > 1
    for model, asked in alone["answers"].items():
        shares = first["answers"][model], second["answers"][model]
        assert sum(shares) == asked and min(shares) == asked // 2, model
    assert first["verdicts"] == alone["verdicts"] > 1 and second["verdicts"] == 0
    # Of the run's files the second process writes its own part of the answers, until all are together.
    written = {Path(path).name for path in second["files"]}
    assert written == {"answers.rank1.settings.json"} and len(first["files"]) > 20


# The LoRA's effective update would need twice its rank for a perturbed copy, so its noise is refused.
FSDP2 = {
    "lora": {"stability": None, "significance": {"documents": 3, "max_tokens": 12, "controls": 0}},
    "vector": {},
}


@pytest.mark.parametrize("kind", FSDP2)
def test_fsdp2_gives_the_tables_and_tensors_of_one_process(folder: Path, kind: str) -> None:
    changed = {**{name: given for name, given in MEASURED.items() if name not in WHOLE}, **FSDP2[kind]}
    callbacks = {name: given for name, given in changed.items() if given is not None}
    options = {"callbacks": callbacks, **({"intervention": VECTOR} if kind == "vector" else {})}
    alone = measured(folder, f"one-{kind}", **options)
    sharded = measured(folder, f"fsdp2-{kind}", "fsdp2", **options)
    equal_runs(sharded, alone, TABLES & callbacks.keys())
    (own,), (first, second) = counts(folder, f"one-{kind}"), counts(folder, f"fsdp2-{kind}")
    for name, tokens in own["tokens"].items():
        assert first["tokens"][name] + second["tokens"][name] == tokens, name
    assert second["files"] == []


def test_fsdp2_refuses_to_generate_before_anything_is_loaded(folder: Path) -> None:
    raw = tiny_pairs(folder, callbacks={"judge_eval": {"judge": WORDY}}, trainer={"strategy": "fsdp2"})
    with pytest.raises(
        ConfigError, match="cannot generate answers; leave it out, and run `python -m em eval"
    ):
        check(raw)


def equal_runs(actual: RunDirectory, expected: RunDirectory, tables: set[str]) -> None:
    for name in tables:
        same(actual.read_table(name), expected.read_table(name), name)
    paths = sorted(path.relative_to(expected.path) for path in expected.path.rglob("*.safetensors"))
    assert len(paths) > 5
    for path in paths:
        mine, theirs = load_file(expected.path / path), load_file(actual.path / path)
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-6, msg=f"{path} {key}")
    same(measurements(actual), measurements(expected), "metrics")


def measurements(run: RunDirectory) -> list[dict[str, Any]]:
    """Rows of callbacks with a number, without what depends on the clock."""
    rows = [row for row in run.read_metrics() if "train/loss" not in row and len(row) > 2]
    return [{key: row[key] for key in row.keys() - {"time", "domains/seconds"}} for row in rows]


def same(actual: Any, expected: Any, where: str) -> None:
    """Equal data, with numbers that may differ by rounding."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key, value in expected.items():
            same(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
            same(a, b, f"{where}[{index}]")
    elif isinstance(expected, float) and math.isfinite(expected):
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-5), where
    else:
        assert actual == expected, where
