import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from em.config import Config, Experiment, Suite, load, load_pool, to_dict, to_yaml
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


LORA = "extends: base.yaml\nname: no\ndescription: no\nintervention: {layer: 5}\nkl: {weight: 7}\n"


def pool(conf: Path, text: str, *overrides: str, name: str = "pool.yaml") -> dict[str, Config]:
    loaded = load(write(conf, text, name), list(overrides))
    assert isinstance(loaded, Suite)
    return loaded.members


def layer_of(config: Config) -> object:
    return config.intervention.get("layer")


def test_a_file_that_two_bases_extend_counts_once(conf: Path) -> None:
    write(conf, LORA, "lora.yaml")
    write(conf, "extends: base.yaml\noptimizer: {lr: 0.5}\n", "fast.yaml")
    found = experiment(write(conf, "extends: [lora.yaml, fast.yaml]\n")).config
    assert (found.intervention["layer"], found.kl.weight, found.optimizer.lr) == (5, 7.0, 0.5)
    assert found == experiment(write(conf, "name: x\nextends: [fast.yaml, lora.yaml]\n")).config


def test_a_member_extends_a_file(conf: Path) -> None:
    write(conf, LORA, "lora.yaml")
    text = "extends: base.yaml\nseed: 3\nmembers:\n  a: {extends: lora.yaml, optimizer: {lr: 0.5}}\n  b: {}\n"
    made = pool(conf, text)
    assert {name: (one.name, one.seed, layer_of(one), one.kl.weight) for name, one in made.items()} == {
        "a": ("pool/a", 3, 5, 7.0),
        "b": ("pool/b", 3, 1, 0.5),
    }
    alone = "extends: lora.yaml\nseed: 3\noptimizer: {lr: 0.5}\nname: pool/a\n"
    assert made["a"] == experiment(write(conf, alone)).config
    loaded = load("conf/pool.yaml")
    assert "extends" not in loaded.raw["members"]["a"]


def test_what_a_member_extends_undoes_nothing_that_the_suite_shares(conf: Path) -> None:
    write(conf, LORA, "lora.yaml")
    write(conf, "extends: base.yaml\noptimizer: {lr: 0.25}\ncallbacks: {one: null}\n", "shared.yaml")
    made = pool(conf, "extends: shared.yaml\nmembers: {a: {extends: lora.yaml}, b: {}}\n")["a"]
    assert (made.optimizer.lr, made.callbacks, layer_of(made), made.kl.weight) == (0.25, {}, 5, 7.0)
    own = pool(conf, "extends: shared.yaml\nkl: {weight: 9}\nmembers: {a: {extends: lora.yaml}}\n")["a"]
    assert (own.kl.weight, layer_of(own)) == (9.0, 5)  # what the suite's own file says stands over it
    last = "extends: shared.yaml\nkl: {weight: 9}\nmembers: {a: {extends: lora.yaml, kl: {weight: 4}}}\n"
    assert pool(conf, last)["a"].kl.weight == 4.0


def test_overrides_stand_over_what_a_member_extends(conf: Path) -> None:
    write(conf, LORA, "lora.yaml")
    text = (
        "extends: base.yaml\nmembers: {a: {extends: lora.yaml}, b: {extends: lora.yaml, kl: {weight: 1}}}\n"
    )
    weights = {name: one.kl.weight for name, one in pool(conf, text, "kl.weight=2").items()}
    assert weights == {"a": 2.0, "b": 2.0}
    one = pool(conf, text, "members.a.kl.weight=3", "kl.weight=2", "members.b=null")
    assert {name: config.kl.weight for name, config in one.items()} == {"a": 3.0}
    swept = pool(conf, f"{text}sweep: {{kl.weight: [0, 6]}}\n")
    assert {name: (config.kl.weight, layer_of(config)) for name, config in swept.items()} == {
        **{"a_weight-0": (0.0, 5), "a_weight-6": (6.0, 5)},
        **{"b_weight-0": (0.0, 5), "b_weight-6": (6.0, 5)},
    }


def test_a_member_extends_several_files_relative_to_its_own(conf: Path) -> None:
    (conf / "deep").mkdir()
    write(conf, LORA, "lora.yaml")
    write(conf, "extends: ../base.yaml\noptimizer: {lr: 0.5}\n", "deep/fast.yaml")
    text = "extends: ../base.yaml\nmembers: {a: {extends: [../lora.yaml, fast.yaml]}}\n"
    made = pool(conf, text, name="deep/pool.yaml")["a"]
    assert (layer_of(made), made.optimizer.lr) == (5, 0.5)
    (conf / "other").mkdir()
    inherited = "extends: ../deep/pool.yaml\nmembers: {a: {seed: 8}, b: {extends: ../lora.yaml}}\n"
    found = pool(conf, inherited, name="other/more.yaml")
    assert [(layer_of(one), one.optimizer.lr, one.seed) for one in found.values()] == [
        (5, 0.5, 8),
        (5, 1e-4, 0),
    ]
    instead = "extends: ../deep/pool.yaml\nmembers: {a: {extends: ../lora.yaml}}\n"
    assert pool(conf, instead, name="other/less.yaml")["a"].optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            "a: {extends: lor.yaml}",
            "conf/x.yaml: members.a.extends: conf/lor.yaml does not exist; did you mean lora.yaml?",
        ),
        (
            "a: {extends: lor.yaml}, b: {}, c: {extends: [lor.yaml]}",
            "conf/x.yaml: members.a.extends (also c): conf/lor.yaml does not exist; did you mean lora.yaml?",
        ),
        (
            "a: {extends: suite.yaml}",
            "conf/x.yaml: members.a.extends: conf/suite.yaml has members; name files of one experiment",
        ),
        (
            "a: {extends: swept.yaml}",
            "conf/x.yaml: members.a.extends: conf/swept.yaml has sweep; name files of one experiment",
        ),
        (
            "a: {extends: x.yaml}",
            "conf/x.yaml: members.a.extends: conf/x.yaml is the file of the member itself",
        ),
        (
            "a: {extends: back.yaml}",
            "conf/x.yaml: members.a.extends: conf/back.yaml: extends itself: x.yaml -> back.yaml -> x.yaml",
        ),
        (
            "a: {extends: lost.yaml}",
            "conf/x.yaml: members.a.extends: conf/lost.yaml: extends 'far/z.yaml', which does not exist",
        ),
        ("a: {extends: 3}", "members.a.extends: expected a file name or a list of them, got 3"),
        ("a: {extends: [1]}", "members.a.extends: expected a file name or a list of them, got [1]"),
    ],
)
def test_what_a_member_cannot_extend(conf: Path, members: str, message: str) -> None:
    write(conf, LORA, "lora.yaml")
    write(conf, "extends: base.yaml\nsweep: {seed: [1]}\n", "swept.yaml")
    write(conf, "extends: x.yaml\n", "back.yaml")
    write(conf, "extends: far/z.yaml\n", "lost.yaml")
    assert problems(write(conf, f"extends: base.yaml\nmembers: {{{members}}}\n")) == [message]


def test_what_a_member_extends_is_written_in_the_file(conf: Path) -> None:
    path = write(conf, "extends: base.yaml\nmembers: {a: {extends: lor.yaml}, b: {}}\n")
    line = "members.a.extends: is a key of the file; write it there"
    assert problems(path, "members.a.extends=base.yaml") == [line]
    loaded = load(path, ["members.a=null"])  # what is dropped is not read
    assert isinstance(loaded, Suite) and list(loaded.members) == ["b"]


def test_definitions_serve_interpolations_and_are_no_part_of_the_result(conf: Path) -> None:
    text = "extends: base.yaml\ndefine: {layer: 4, betas: [0.5, 0.6]}\n"
    text += "intervention: {layer: '${define.layer}'}\noptimizer: {betas: '${define.betas}'}\n"
    path = write(conf, text, "defined.yaml")
    found = experiment(path)
    assert (found.config.intervention["layer"], found.config.optimizer.betas) == (4, [0.5, 0.6])
    assert "define" not in found.raw and "define:" not in to_yaml(found.config)
    assert experiment(path, "define.layer=6").config.intervention["layer"] == 6
    made = pool(conf, "extends: base.yaml\nmembers: {a: {extends: defined.yaml, define: {layer: 7}}}\n")
    assert layer_of(made["a"]) == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("define.layr=6", "define.layr=6: the file defines no layr; did you mean layer?"),
        ("define.x=6", "define.x=6: the file defines no x; it has layer"),
        ("define=6", "define: expected a mapping of names to values, got 6"),
        ("seed=${define.nix}", "seed: Interpolation key 'define.nix' not found"),
    ],
)
def test_definitions_that_are_wrong(conf: Path, override: str, message: str) -> None:
    path = write(conf, "extends: base.yaml\ndefine: {layer: 4}\n")
    assert problems(path, override) == [message]


def test_a_member_is_given_what_it_or_its_bases_define(conf: Path) -> None:
    write(
        conf, "extends: base.yaml\ndefine: {layer: 4}\nintervention: {layer: '${define.layer}'}\n", "d.yaml"
    )
    text = "extends: base.yaml\nmembers: {a: {extends: d.yaml}, b: {}}\n"
    assert [layer_of(one) for one in pool(conf, text, "define.layer=6").values()] == [6, 1]
    assert layer_of(pool(conf, text, "members.a.define.layer=8")["a"]) == 8
    swept = pool(conf, f"{text}sweep: {{define.layer: [2, 3]}}\n", "members.b=null")
    assert {name: layer_of(one) for name, one in swept.items()} == {"a_layer-2": 2, "a_layer-3": 3}
    path = write(conf, text)
    assert problems(path, "members.a.define.lyer=8") == [
        "members.a: the file defines no lyer; did you mean layer?"
    ]
    assert problems(path, "sweep.define.x=[1]", "members.b=null") == [
        "members.a_x-1: the file defines no x; it has layer"
    ]


POOL = """
extends: base.yaml
members:
  here: {}
  gone: {data: {train: [{path: far.jsonl}], domains: {d: [{path: far.jsonl}, {path: off.jsonl.gz}]}}}
  wrong: {data: {train: [{path: far.jsonl}]}, kl: {weight: -1}}
  odd: {seed: x}
"""


def test_a_pool_leaves_out_members_whose_data_is_not_here(conf: Path) -> None:
    path = write(conf, POOL)
    configs, absent = load_pool(path, ["seed=5"], ["gone", "here"])
    assert {name: (one.name, one.seed) for name, one in configs.items()} == {"here": ("x/here", 5)}
    assert absent == {
        "gone": "data that is not here: far.jsonl, off.jsonl.gz; set EM_DATA or data.root to the folder that "
        "holds it"
    }
    (conf.parent / "far.jsonl").write_text("{}\n")
    assert load_pool(path, [], ["gone"])[1]["gone"].startswith("data that is not here: off.jsonl.gz;")
    (conf.parent / "off.jsonl.gz").write_bytes(b"")
    configs, absent = load_pool(path, [], ["gone"])
    assert list(configs) == ["gone"] and absent == {}


def test_a_pool_reports_every_other_problem(conf: Path) -> None:
    path = write(conf, POOL)
    with pytest.raises(ConfigError) as caught:
        load_pool(path)
    assert [line.partition(": ")[0] for line in caught.value.problems] == ["wrong", "wrong", "odd"]
    assert "wrong: kl.weight: expected at least 0, got -1.0" in caught.value.problems
    with pytest.raises(ConfigError, match="x.yaml has no member 'her'; did you mean here"):
        load_pool(path, [], ["here", "her"])
    with pytest.raises(ConfigError, match="conf/base.yaml is not a suite; it has no members"):
        load_pool("conf/base.yaml")
    with pytest.raises(ConfigError, match="intervention.layer: backbone.model smollm2 has layers 0 to 29"):
        load_pool(path, ["intervention.layer=30"], ["gone"])
