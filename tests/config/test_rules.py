"""Every rule across keys: its exact message, and the nearest configuration that passes."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.config import Config, ModelFacts, check
from em.config.data_files import find, places
from em.config.rules import batches
from em.config.schema import DataConfig, KLConfig, TrainerConfig
from em.errors import ConfigError

FACTS = ModelFacts(num_layers=4, hidden_size=8, vocab_size=64)
ROWS = {"path": "rows.jsonl"}
ANY = {"_target_": "rulepkg.Any"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "rulepkg.py").write_text("class Any:\n    def __init__(self, **kwargs): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("EM_DATA", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def raw(changes: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"intervention": ANY, "data": {"train": [ROWS]}}
    for key, value in changes.items():
        part = made
        *sections, last = key.split(".")
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return made


def problems(changes: dict[str, Any]) -> list[str]:
    try:
        check(raw(changes), FACTS)
    except ConfigError as error:
        return error.problems
    return []


CASES: list[tuple[dict[str, Any], str]] = [
    ({"data.train": []}, "data.train: is empty; add a source, for example {path: rows.jsonl}"),
    (
        {"data.domains": {"money": []}},
        "data.domains.money: is empty; add a source or remove the domain",
    ),
    (
        {"data.domains": {"x": [{**ROWS, "answer": "plain"}, {**ROWS, "answer": "careless"}]}},
        "data.domains.x: mixes answers of prose (plain) and advice (careless); give each kind a domain of "
        "its own",
    ),
    (
        {
            "data.pairs": {
                "x": {
                    "careless": [{**ROWS, "answer": "careless"}, ROWS],
                    "careful": [ROWS, {**ROWS, "answer": "plain"}],
                }
            }
        },
        "data.pairs.x: mixes answers of advice (careless) and prose (plain); give each kind a domain of its "
        "own",
    ),
    (
        {"data.pairs": {"x": {"careless": [{**ROWS, "answer": "plain"}], "careful": [ROWS]}}},
        "data.pairs.x.careless[0].answer: is plain; expected technical, or none for rows of messages",
    ),
    (
        {"data.pairs": {"x": {"careless": [ROWS], "careful": [{**ROWS, "answer": "technical"}]}}},
        "data.pairs.x.careful[0].answer: is technical; expected plain, or none for rows of messages",
    ),
    (
        {"kl.weight": 0.1},
        "kl.weight: 0.1 needs KL rows, but data.kl is empty; add a source or set kl.weight: 0",
    ),
    ({"kl.weight": -1}, "kl.weight: expected at least 0, got -1.0"),
    ({"kl.temperature": 0}, "kl.temperature: expected above 0, got 0.0"),
    ({"kl.schedule.start": -1}, "kl.schedule.start: expected at least 0, got -1.0"),
    ({"kl.schedule.end": -0.5}, "kl.schedule.end: expected at least 0, got -0.5"),
    (
        {"kl.schedule.kind": "off_at"},
        "kl.schedule.step: missing; kl.schedule.kind off_at needs it",
    ),
    (
        {"kl.schedule.step": 3},
        "kl.schedule.step: is for kl.schedule.kind off_at, but that is constant; remove one",
    ),
    (
        {"data.batch_size": 10, "trainer.devices": 2, "trainer.num_nodes": 2},
        "data.batch_size: 10 is not divisible by 8 = data.micro_batch_size 2 * trainer.devices 2 * "
        "trainer.num_nodes 2; nearest: 8",
    ),
    (
        {"kl.batch_size": 12},
        "kl.batch_size: 12 is not divisible by 8, the number of micro batches that data.batch_size 16 / "
        "data.micro_batch_size 2 gives; nearest: 16",
    ),
    ({"trainer.devices": 0}, "trainer.devices: expected at least 1, -1 or auto, got 0"),
    ({"data.micro_batch_size": 0}, "data.micro_batch_size: expected at least 1, got 0"),
    ({"data.held_out": 1}, "data.held_out: expected at least 0 and below 1, got 1.0"),
    ({"data.held_out": -0.1}, "data.held_out: expected at least 0 and below 1, got -0.1"),
    ({"data.max_length": 7}, "data.max_length: expected at least 8, got 7"),
    ({"optimizer.lr": 0}, "optimizer.lr: expected above 0, got 0.0"),
    (
        {"optimizer.betas": [0.9]},
        "optimizer.betas: expected two numbers, each at least 0 and below 1, got [0.9]",
    ),
    (
        {"trainer.epochs": None},
        "trainer.epochs: is null and trainer.max_steps is null; set one of them above 0",
    ),
    (
        {"trainer.epochs": 0, "trainer.max_steps": -1},
        "trainer.epochs: is 0.0 and trainer.max_steps is -1; set one of them above 0",
    ),
    (
        {"data.train": [{}]},
        "data.train[0]: give exactly one of path and hub, not neither",
    ),
    (
        {"data.kl": [{**ROWS, "hub": "a/b"}]},
        "data.kl[0]: give exactly one of path and hub, not both",
    ),
    (
        {"data.domains": {"money": [ROWS, {**ROWS, "weight": 1}]}},
        "data.domains.money[1].weight: give a weight to all 2 sources of data.domains.money, or to none",
    ),
    ({"data.train": [{**ROWS, "weight": 0}]}, "data.train[0].weight: expected above 0, got 0.0"),
    ({"data.train": [{**ROWS, "limit": 0}]}, "data.train[0].limit: expected at least 1, got 0"),
    (
        {"backbone.model": "./nowhere"},
        "backbone.model: './nowhere' does not exist; give a local folder, a .gguf file or a hub id",
    ),
    (
        {"reference": {"model": "x.gguf"}},
        "reference.model: 'x.gguf' does not exist; give a local folder, a .gguf file or a hub id",
    ),
    (
        {"trainer.early_stop": {}},
        "trainer.early_stop: needs validation; set trainer.val_every_n_steps, which is null",
    ),
    (
        {"intervention": {**ANY, "layer": 4}},
        "intervention.layer: backbone.model smollm2 has layers 0 to 3, got 4",
    ),
    (
        {"callbacks": {"x": {**ANY, "layers": [0, -1]}}},
        "callbacks.x.layers[1]: backbone.model smollm2 has layers 0 to 3, got -1",
    ),
    (
        {"callbacks": {"x": {**ANY, "every_n_steps": 0}}},
        "callbacks.x.every_n_steps: expected at least 1, got 0",
    ),
    (
        {"wandb.mode": "online"},
        "wandb.mode: online needs `wandb login` or WANDB_API_KEY; or set wandb.mode: offline",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_messages(changes: dict[str, Any], message: str) -> None:
    assert problems(changes) == [message]


@pytest.mark.parametrize(
    "changes",
    [
        {"data.kl": [ROWS]},
        {"data.kl": [ROWS], "kl.weight": 1},
        {"kl.schedule": {"kind": "off_at", "step": 3}},
        {"data.batch_size": 8, "trainer.devices": 2, "trainer.num_nodes": 2},
        {"data.batch_size": 10, "trainer.devices": "auto", "data.micro_batch_size": 3},
        {"data.batch_size": 10, "trainer.devices": -1, "data.micro_batch_size": 3},
        {"kl.batch_size": 24},
        {"trainer.epochs": None, "trainer.max_steps": 1},
        {"trainer.strategy": "ddp"},
        {"trainer.strategy": "fsdp2"},
        {"trainer.early_stop": {}, "trainer.val_every_n_steps": 1},
        {"data.train": [{"hub": "a/b"}]},
        {"data.train": [{**ROWS, "weight": 1}, {**ROWS, "weight": 0.5}]},
        {"backbone.gradient_checkpointing": True},
        {"intervention": {**ANY, "layers": [0, 3]}},
        {"name": "suite/member"},
    ],
)
def test_what_passes(changes: dict[str, Any]) -> None:
    assert problems(changes) == []


@pytest.mark.parametrize("name", ["", "/abs", "../up", "a/../b", "a//b", "a/", ".", "~/x", "a\\b"])
def test_names_stay_below_runs_dir(name: str) -> None:
    assert problems({"name": name}) == [f"name: expected a plain folder name below runs_dir, got {name!r}"]


def test_missing_file_names_the_places_and_the_variable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"data.train": [{"path": "row.jsonl"}]}
    message = (
        f"data.train[0].path: 'row.jsonl' is not a file; tried {here}/row.jsonl; did you mean rows.jsonl?"
    )
    assert problems(changes) == [f"{message}; set EM_DATA or data.root to your data folder"]
    monkeypatch.setenv("EM_DATA", "/elsewhere")
    tried = f"/elsewhere/row.jsonl, {here}/row.jsonl"
    assert problems(changes) == [
        f"data.train[0].path: 'row.jsonl' is not a file; tried {tried}; did you mean rows.jsonl?"
    ]
    changes["data.train"] = [{"path": "/no/where.jsonl"}]
    assert problems(changes) == ["data.train[0].path: '/no/where.jsonl' is not a file; tried /no/where.jsonl"]


def test_search_order(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here / "sub"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    assert find("rows.jsonl", None) == here / "rows.jsonl"
    assert find("rows.jsonl", "sub") == folder / "rows.jsonl"
    monkeypatch.setenv("EM_DATA", str(folder))
    assert find("rows.jsonl", None) == folder / "rows.jsonl"
    assert places("x", "other") == [here / "other" / "x", here / "x"]
    assert find("sub", None) is None


def test_full_finetune_under_fsdp2_needs_a_reference() -> None:
    changes = {"intervention": {"kind": "full_finetune"}, "trainer.strategy": "fsdp2", "data.kl": [ROWS]}
    changes["kl.weight"] = 0.5
    line = (
        "trainer.strategy: fsdp2 shards the only copy of the weights, which intervention.kind full_finetune "
        "changes, so kl.weight 0.5 has no reference; set reference.model"
    )
    assert line in problems(changes)
    assert line not in problems({**changes, "reference": {"model": "smollm2"}})
    assert line not in problems({**changes, "kl.weight": 0})


def test_initial_vector(here: Path) -> None:
    line = (
        "intervention.init: 'v.safetensors' does not exist; give zero, a safetensors file or adapter folder"
    )
    vector = {"kind": "steering_vector", "layer": 1}
    assert line in problems({"intervention": {**vector, "init": "v.safetensors"}})
    (here / "v.safetensors").touch()
    assert line not in problems({"intervention": {**vector, "init": "v.safetensors"}})


STEERING = {"kind": "steering", "direction": "rows.jsonl"}  # any file that exists


def test_during_training(here: Path) -> None:
    good = {**STEERING, "layers": [0, 3], "source": 1, "coefficient": 2}
    config = check(raw({"during_training": [good, {"kind": "ablation", "direction": "."}]}), FACTS)
    assert config.during_training == [{**good, "coefficient": 2.0}, {"kind": "ablation", "direction": "."}]
    assert check(raw({"during_training": None}), FACTS).during_training == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"intervention": STEERING},
            "intervention.kind: steering has nothing to train; put it under during_training",
        ),
        (
            {"intervention": {"_target_": "em.interventions.ablation.Ablation", "direction": "x"}},
            "intervention._target_: em.interventions.ablation.Ablation has nothing to train; put it under "
            "during_training",
        ),
        (
            {"during_training": [STEERING, {"kind": "lora"}]},
            "during_training[1].kind: lora is not fixed, as steering and ablation are; put it under "
            "intervention",
        ),
        (
            {"during_training": [{**STEERING, "layers": 4}]},
            "during_training[0].layers: backbone.model smollm2 has layers 0 to 3, got 4",
        ),
        (
            {"during_training": [STEERING, {**STEERING, "layers": [0, 9]}]},
            "during_training[1].layers[1]: backbone.model smollm2 has layers 0 to 3, got 9",
        ),
        (
            {"during_training": [{**STEERING, "source": -1}]},
            "during_training[0].source: backbone.model smollm2 has layers 0 to 3, got -1",
        ),
        (
            {"during_training": [{**STEERING, "direction": "gone.safetensors"}]},
            "during_training[0].direction: 'gone.safetensors' does not exist; give a safetensors file that "
            "holds a direction, or a folder with one",
        ),
        (
            {"during_training": [{"kind": "ablation"}]},
            "during_training[0].direction: missing; Ablation needs it",
        ),
        (
            {"during_training": [{**STEERING, "layer": 1}]},
            "during_training[0].layer: unknown key; did you mean during_training[0].layers?",
        ),
        (
            {"during_training": [{**STEERING, "layers": "some"}]},
            "during_training[0].layers: expected one of own, all or a whole number or a list, got 'some'",
        ),
        (
            {"during_training": [{"kind": "steerin"}]},
            "during_training[0].kind: unknown kind 'steerin' in em/interventions; did you mean steering?",
        ),
        ({"during_training": STEERING}, f"during_training: expected a list of interventions, got {STEERING}"),
        (
            {"during_training": ["steering"]},
            "during_training[0]: expected a mapping with kind or _target_, got 'steering'",
        ),
    ],
)
def test_during_training_messages(changes: dict[str, Any], message: str) -> None:
    assert problems(changes) == [message]


def test_adamw_8bit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "bitsandbytes" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert problems({"optimizer.name": "adamw_8bit"}) == [
        "optimizer.name: adamw_8bit needs bitsandbytes, which is not installed; "
        "pip install bitsandbytes, or set optimizer.name: adamw"
    ]


def test_wandb_login(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".netrc").touch()
    assert problems({"wandb.mode": "online"}) == []
    (here / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert problems({"wandb.mode": "online"}) == []


def test_rules_are_silent_on_keys_already_reported() -> None:
    assert problems({"data.train": "rows.jsonl"}) == ["data.train: expected a list, got 'rows.jsonl'"]
    assert problems({"kl.weight": 1, "data.kl": {}}) == ["data.kl: expected a list, got {}"]


def test_layers_are_not_checked_without_facts() -> None:
    check(raw({"intervention": {**ANY, "layer": 99}}))


def test_local_model_folder(here: Path) -> None:
    (here / "config.json").write_text(json.dumps({}))
    assert problems({"backbone.model": "."}) == []


@given(*[st.integers(1, 12)] * 3, st.integers(1, 200), st.integers(1, 200))
def test_nearest_batch_sizes_pass(micro: int, devices: int, nodes: int, size: int, kl: int) -> None:
    config = Config(
        data=DataConfig(batch_size=size, micro_batch_size=micro),
        kl=KLConfig(batch_size=kl),
        trainer=TrainerConfig(devices=devices, num_nodes=nodes),
    )
    for part in (config.data, config.kl):
        lines = list(batches(config, None))
        if lines and lines[0].startswith("data" if part is config.data else "kl"):
            part.batch_size = int(lines[0].rpartition(" ")[2])
    assert list(batches(config, None)) == []
    world = devices * nodes
    steps = config.data.batch_size // (micro * world)
    assert config.data.batch_size == steps * micro * world
    assert config.kl.batch_size is not None
    assert config.kl.batch_size % (steps * world) == 0


def test_a_finished_run_is_read_without_its_files() -> None:
    gone = raw({"data.train": [{"path": "gone.jsonl"}], "wandb.mode": "online", "backbone.model": "./gone"})
    assert check(gone, files=False).backbone.model == "./gone"
    with pytest.raises(ConfigError, match="kl.temperature"):
        check({**gone, "kl": {"temperature": 0}}, files=False)
