import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from em.config import Experiment, Suite, load, to_dict, to_yaml
from em.config.yaml_files import merge
from em.errors import ConfigError

BASE = """
# base
name: never-inherited
description: nor this
intervention: {_target_: composepkg.Part, layer: 1}
data: {train: [{path: rows.jsonl}], kl: [{path: rows.jsonl}]}
kl: {weight: 0.5}
optimizer: {lr: 1e-4}
callbacks: {one: {_target_: composepkg.Part, layer: 2}}
"""
SUITE = """
extends: base.yaml
description: two objectives
seed: 3
members:
  general: {description: first}
  narrow: {kl: {weight: 0}, seed: 4}
  gone: null
"""


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "composepkg.py").write_text("class Part:\n    def __init__(self, layer: int = 0): ...\n")
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    (folder / "suite.yaml").write_text(SUITE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EM_DATA", raising=False)
    importlib.invalidate_caches()
    return folder


def write(conf: Path, text: str, name: str = "x.yaml") -> Path:
    (conf / name).write_text(text)
    return Path("conf") / name


def experiment(path: Path | str, *overrides: str) -> Experiment:
    loaded = load(path, list(overrides))
    assert isinstance(loaded, Experiment)
    return loaded


def suite(*overrides: str) -> Suite:
    loaded = load("conf/suite.yaml", list(overrides))
    assert isinstance(loaded, Suite)
    return loaded


def problems(path: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, list(overrides))
    return caught.value.problems


def test_experiment(conf: Path) -> None:
    found = experiment(write(conf, "extends: base.yaml\nkl: {temperature: 2}\n"))
    assert found.config.name == "x"
    assert (found.config.kl.weight, found.config.kl.temperature) == (0.5, 2.0)
    assert found.config.optimizer.lr == 1e-4
    assert found.raw["kl"] == {"weight": 0.5, "temperature": 2}
    assert experiment("conf/base.yaml").config.name == "never-inherited"


def test_extends_a_list_in_order(conf: Path) -> None:
    (conf / "groups").mkdir()
    write(conf, "kl: {weight: 2}\nseed: 5\n", "groups/strong.yaml")
    found = experiment(write(conf, "extends: [base.yaml, groups/strong.yaml]\nseed: 6\n")).config
    assert (found.kl.weight, found.seed) == (2.0, 6)


def test_merge() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": 1}
    assert merge(base, {"a": {"c": [3]}, "d": None, "f": None}) == {"a": {"b": 1, "c": [3]}, "f": None}
    assert merge({"kind": "lora", "r": 1}, {"kind": "steering_vector"}) == {"kind": "steering_vector"}
    assert merge({"kind": "lora", "r": 1}, {"kind": "lora"}) == {"kind": "lora", "r": 1}
    assert merge({"kind": "lora", "r": 1}, {"r": 2}) == {"kind": "lora", "r": 2}
    assert merge({"kind": "lora", "r": 1}, {"_target_": "a.B"}) == {"_target_": "a.B"}
    assert base["a"] == {"b": 1, "c": [1, 2]}


def test_null_drops_a_mapping(conf: Path) -> None:
    path = write(conf, "extends: base.yaml\nkl: null\ncallbacks: {one: null}\n")
    assert experiment(path).config.kl.weight == 0.0
    assert experiment(path).config.callbacks == {}
    assert experiment("conf/base.yaml", "callbacks.one=false").config.callbacks == {}


def test_interpolation(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSE_SEED", "7")
    text = (
        "extends: base.yaml\nseed: ${oc.decode:${oc.env:COMPOSE_SEED}}\nwandb: {group: '${name}-${seed}'}\n"
    )
    config = experiment(write(conf, text), "name=y").config
    assert (config.seed, config.wandb.group) == (7, "y-7")
    monkeypatch.delenv("COMPOSE_SEED")
    assert problems(write(conf, "extends: base.yaml\nwandb: {group: '${oc.env:COMPOSE_SEED}'}\n")) == [
        "wandb.group: Environment variable 'COMPOSE_SEED' not found"
    ]
    assert problems(write(conf, "extends: base.yaml\nseed: ???\n")) == ["seed: Missing mandatory value: seed"]


def test_overrides() -> None:
    config = experiment(
        "conf/base.yaml",
        "kl.weight=3e-2",
        "optimizer.betas=[0.8,0.9]",
        "trainer.epochs=null",
        "trainer.max_steps=2",
    ).config
    assert config.kl.weight == 0.03
    assert config.optimizer.betas == [0.8, 0.9]
    assert (config.trainer.epochs, config.trainer.max_steps) == (None, 2)
    replaced = experiment("conf/base.yaml", "data.train=[{path: rows.jsonl, limit: 1}]").config
    assert replaced.data.train[0].limit == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kl.weight", "kl.weight: expected an override such as kl.weight=0.1"),
        ("=3", "=3: expected an override such as kl.weight=0.1"),
        ("kl..weight=3", "kl..weight=3: expected an override such as kl.weight=0.1"),
        ("kl.weight=[1,", "kl.weight=[1,: the value is not valid YAML; quote it for the shell"),
        ("kl.weigth=1", "kl.weigth: unknown key; did you mean kl.weight?"),
        ("kl=1", "kl: expected a mapping, got 1"),
        ("members.narrow.seed=1", "members.narrow.seed=1: conf/base.yaml is not a suite; it has no members"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    assert problems("conf/base.yaml", override) == [message]


def test_files_that_cannot_be_used(conf: Path) -> None:
    assert problems("conf/bas.yaml") == ["conf/bas.yaml: no such configuration; did you mean conf/base.yaml?"]
    assert problems("suite") == ["suite: no such configuration; did you mean conf/suite.yaml?"]
    assert problems("zzzz/qqqq.txt") == ["zzzz/qqqq.txt: no such configuration"]
    assert problems(write(conf, "a: 1\nb: [1\nc: 2\n"))[0].startswith("conf/x.yaml:3: not valid YAML: ")
    assert problems(write(conf, "seed: 1\nseed: 2\n")) == [
        "conf/x.yaml:2: not valid YAML: found duplicate key seed"
    ]
    assert problems(write(conf, "- 1\n")) == ["conf/x.yaml: expected a mapping of keys, got a list"]
    assert problems(write(conf, "3\n"))[0].startswith("conf/x.yaml: cannot be read as a YAML mapping (")
    (conf / "x.yaml").write_bytes(b"name: \xff\n")
    assert problems("conf/x.yaml")[0].startswith("conf/x.yaml: cannot be read as a YAML mapping (")


def test_extends_messages(conf: Path) -> None:
    assert problems(write(conf, "extends: bse.yaml\n")) == [
        "conf/x.yaml: extends 'bse.yaml', which does not exist; did you mean base.yaml?"
    ]
    assert problems(write(conf, "extends: 3\n")) == [
        "conf/x.yaml: extends: expected a file name or a list of them, got 3"
    ]
    write(conf, "extends: x.yaml\n", "y.yaml")
    assert problems(write(conf, "extends: y.yaml\n")) == [
        "conf/y.yaml: extends itself: x.yaml -> y.yaml -> x.yaml"
    ]
    assert problems(write(conf, "extends: x.yaml\n")) == ["conf/x.yaml: extends itself: x.yaml -> x.yaml"]


def test_one_base_may_be_reached_twice(conf: Path) -> None:
    write(conf, "extends: base.yaml\nseed: 8\n", "y.yaml")
    assert experiment(write(conf, "extends: [base.yaml, y.yaml]\n")).config.seed == 8


def test_suite() -> None:
    found = suite()
    assert (found.name, found.path) == ("suite", Path("conf/suite.yaml"))
    assert {key: (one.name, one.seed, one.kl.weight) for key, one in found.members.items()} == {
        "general": ("suite/general", 3, 0.5),
        "narrow": ("suite/narrow", 4, 0.0),
    }
    assert found.raw["members"]["narrow"]["kl"] == {"weight": 0}


def test_suite_overrides() -> None:
    found = suite("members.narrow.kl.weight=3", "kl.weight=2", "seed=9", "name=other")
    assert found.name == "other"
    assert {one.name: (one.kl.weight, one.seed) for one in found.members.values()} == {
        "other/general": (2.0, 9),
        "other/narrow": (3.0, 9),
    }
    assert list(suite("members.general=null").members) == ["narrow"]


def test_suite_reports_all_members_at_once() -> None:
    assert problems(
        "conf/suite.yaml", "kl.weigth=1", "members.narrow.seed=x", "members.general.seed=null"
    ) == [
        "kl.weigth: unknown key; did you mean kl.weight?",
        "general: seed: expected a whole number, got null",
        "narrow: seed: expected a whole number, got 'x'",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "members.narow.seed=1",
            "members.narow.seed=1: conf/suite.yaml has no member 'narow'; did you mean narrow?",
        ),
        ("members.narrow=3", "members.narrow: expected a mapping, got 3"),
        ("members.narrow.name=x", "members.narrow.name: a member is named after its key; remove it"),
        ("members=3", "members=3: expected members.NAME.KEY=VALUE, or members.NAME=null"),
        ("name=3", "conf/suite.yaml: name: expected text, got 3"),
    ],
)
def test_suite_messages(override: str, message: str) -> None:
    assert problems("conf/suite.yaml", override) == [message]


def test_suite_without_members(conf: Path) -> None:
    assert problems(write(conf, "extends: base.yaml\nmembers: [1]\n")) == [
        "conf/x.yaml: members: expected a mapping of names to differences, got [1]"
    ]
    assert problems(write(conf, "extends: base.yaml\nmembers: {a: null}\n")) == [
        "conf/x.yaml: members: none is left; a suite needs at least one"
    ]


def test_layers_are_checked_against_the_model(conf: Path) -> None:
    assert problems("conf/base.yaml", "intervention.layer=30") == [
        "intervention.layer: backbone.model smollm2 has layers 0 to 29, got 30"
    ]
    (conf / "config.json").write_text("{")
    assert [
        line.partition(" ")[0] for line in problems("conf/base.yaml", "backbone.model=./conf", "seed=x")
    ] == [
        "backbone.model:",
        "seed:",
    ]


def test_written_yaml_loads_to_the_same_configuration(conf: Path) -> None:
    config = experiment("conf/base.yaml", "optimizer.lr=1e-5", "trainer.max_steps=3").config
    text = to_yaml(config)
    assert experiment(write(conf, text)).config == config
    assert "lr: 1.0e-05" in text
    assert to_dict(config)["optimizer"]["lr"] == 1e-5


def test_errors_come_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from em.config import load\n"
        "from em.errors import ConfigError\n"
        "overrides = ['kl.weigth=1',\n"
        "             'callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping}',\n"
        "             'backbone.model=someone/never-downloaded-this', 'optimizer.name=adamw_8bit']\n"
        "try:\n    load('conf/base.yaml', overrides)\n"
        "except ConfigError as error:\n    print(error)\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'peft', 'wandb'} & set(sys.modules)))\n"
    )
    root = str(Path(__file__).parents[2])
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['.', {root!r}]\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert "kl.weigth: unknown key; did you mean kl.weight?" in lines
    assert "callbacks.stop.monitor: missing; EarlyStopping needs it" in lines
    assert lines[-1] == "[]"
    assert time.perf_counter() - started < 3
