"""The key `sweep`: names, crossing, overrides, and every way in which it can be wrong."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from em.config import Experiment, Suite, load
from em.config.sweep import points
from em.config.sweep_names import PLAIN_NAME
from em.errors import ConfigError

BASE = """
intervention: {_target_: sweeppkg.Part, layer: 1}
data: {train: [{path: rows.jsonl}], kl: [{path: rows.jsonl}]}
kl: {weight: 0.5}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "sweeppkg.py").write_text("class Part:\n    def __init__(self, layer: int = 0): ...\n")
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EM_DATA", raising=False)
    importlib.invalidate_caches()
    return tmp_path


def suite(text: str, *overrides: str) -> Suite:
    Path("x.yaml").write_text(f"extends: base.yaml\n{text}\n")
    loaded = load("x.yaml", list(overrides))
    assert isinstance(loaded, Suite)
    return loaded


def names(text: str, *overrides: str) -> list[str]:
    return list(suite(text, *overrides).members)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        suite(text, *overrides)
    return caught.value.problems


def test_a_grid_is_the_product_of_its_lists() -> None:
    found = suite("sweep: {kl.weight: [0.1, 3], seed: [0, 1]}")
    assert {name: (one.name, one.kl.weight, one.seed) for name, one in found.members.items()} == {
        "weight-0.1_seed-0": ("x/weight-0.1_seed-0", 0.1, 0),
        "weight-0.1_seed-1": ("x/weight-0.1_seed-1", 0.1, 1),
        "weight-3_seed-0": ("x/weight-3_seed-0", 3.0, 0),
        "weight-3_seed-1": ("x/weight-3_seed-1", 3.0, 1),
    }
    assert found.raw["members"]["weight-3_seed-1"]["kl"] == {"weight": 3}


def test_nested_keys_are_dotted_keys() -> None:
    assert names("sweep: {kl: {weight: [1], temperature: [2]}}") == ["weight-1_temperature-2"]


def test_a_list_of_grids_is_their_union() -> None:
    text = "sweep: [{kl.weight: [0, 1], seed: [0]}, {seed: [0, 1], kl.weight: [1]}, {optimizer.lr: [1e-4]}]"
    found = suite(text).members
    # The second grid holds (seed 0, weight 1) again, in another order: once is enough.
    assert list(found) == ["weight-0_seed-0", "weight-1_seed-0", "seed-1_weight-1", "lr-0.0001"]
    assert (found["lr-0.0001"].kl.weight, found["lr-0.0001"].optimizer.lr) == (0.5, 1e-4)


def test_members_are_crossed_with_the_sweep() -> None:
    text = (
        "members: {general: {kl: {weight: 0}}, narrow: {optimizer: {lr: 0.5}}, gone: null}\n"
        "sweep: {seed: [0, 1]}"
    )
    found = suite(text).members
    assert list(found) == ["general_seed-0", "general_seed-1", "narrow_seed-0", "narrow_seed-1"]
    assert [one.kl.weight for one in found.values()] == [0, 0, 0.5, 0.5]
    assert [one.seed for one in found.values()] == [0, 1, 0, 1]
    # An override of a member is one of all its crossings; a crossing has a name of its own.
    found = suite(text, "members.narrow.kl.weight=2", "members.narrow_seed-1.kl.weight=3").members
    assert [one.kl.weight for one in found.values()] == [0, 0, 2, 3]
    assert names(text, "members.general=null") == ["narrow_seed-0", "narrow_seed-1"]
    assert names(text, "members.general=null", "members.narrow_seed-0=null") == ["narrow_seed-1"]


def test_a_name_with_a_dot_can_be_overridden_and_dropped() -> None:
    text = "sweep: {kl.weight: [0.3, 0.35]}"
    found = suite(text, "members.weight-0.3.seed=4", "members.weight-0.35={seed: 5}").members
    assert [one.seed for one in found.values()] == [4, 5]
    assert names(text, "members.weight-0.3=null") == ["weight-0.35"]


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("kl.weight", 1, "weight-1"),
        ("kl.weight", 1.0, "weight-1"),
        ("kl.weight", 0.30, "weight-0.3"),
        ("kl.weight", -0.3, "weight--0.3"),
        ("optimizer.lr", 1e-5, "lr-1e-05"),
        ("optimizer.lr", 1e20, "lr-1e20"),
        ("a.on", True, "on-true"),
        ("a.on", None, "on-null"),
        ("data.root", "my data/x", "root-my-data-x"),
        ("data.root", "../../$(rm -rf ~)", "root-rm--rf"),
        ("data.root", "", "root-12ae32cb"),
        ("data.root", "é", "root-abc3932c"),
        ("data.root", "x" * 33, "root-xxxxxxxxxxxxxxxxxxxxxxx-997d53cf"),
        ("layers", [12, 15], "layers-12-15"),
        ("layers", [], "layers-empty"),
        ("intervention", {"kind": "lora", "r": 8}, "intervention-lora-8"),
        ("intervention._target_", "a.B", "target-a.B"),
        ("data.domains.my soup", 1, "my-soup-1"),
    ],
)
def test_names(key: str, value: Any, name: str) -> None:
    (point,) = points({key: [value]})
    assert point.name == name
    assert PLAIN_NAME.fullmatch(point.name) and point.values == {key: value}


def test_keys_that_end_alike_are_told_apart() -> None:
    found = points({"kl.weight": [1], "a.b.weight": [2], "seed": [0]})
    assert [point.name for point in found] == ["kl.weight-1_b.weight-2_seed-0"]


def test_a_value_more_renames_nothing() -> None:
    few, many = (points({"kl.weight": values, "seed": [0, 1]}) for values in ([1, 3], [0.5, 1, 2, 3]))
    assert {point.name for point in few} < {point.name for point in many}


def test_long_names_stay_short_and_unique() -> None:
    keys = {f"key_number_{number}": ["a" * 20] for number in range(8)}
    found = points({**keys, "last": [1, 2]})
    assert len({point.name for point in found}) == 2 and {len(point.name) for point in found} == {120}


def test_a_swept_value_stands_over_the_file_and_the_member() -> None:
    text = "members: {narrow: {kl: {weight: 9}}}\nsweep: {kl.weight: [1, 2]}"
    assert [one.kl.weight for one in suite(text).members.values()] == [1, 2]


def test_a_swept_component_replaces_one_of_another_kind() -> None:
    kinds = "[{kind: lora, r: 4}, {kind: steering_vector, layer: 3}]"
    found = suite(f"sweep: {{intervention: {kinds}}}").members
    assert {name: one.intervention for name, one in found.items()} == {
        "intervention-lora-4": {"kind": "lora", "r": 4},
        "intervention-steering_vector-3": {"kind": "steering_vector", "layer": 3},
    }
    # An override of the kind comes first: the swept option is one of it.
    found = suite("sweep: {intervention.layer: [2]}", "intervention.kind=steering_vector").members
    assert found["layer-2"].intervention == {"kind": "steering_vector", "layer": 2}


def test_the_command_line_replaces_adds_and_takes_out_lists() -> None:
    text = "sweep: {kl.weight: [0.1, 3]}"
    assert names(text, "sweep.kl.weight=[1]") == ["weight-1"]
    assert names("sweep: {kl: {weight: [0.1]}}", "sweep.kl.weight=[1]") == ["weight-1"]
    assert names(text, "sweep.seed=[7]") == ["weight-0.1_seed-7", "weight-3_seed-7"]
    assert names(text, "sweep.seed=[7]", "sweep.kl.weight=null") == ["seed-7"]
    assert names(text, "sweep=[{seed: [1]}, {kl.temperature: [2]}]") == ["seed-1", "temperature-2"]
    union = "sweep: [{kl.weight: [0.1]}, {optimizer.lr: [0.1]}]"
    assert names(union, "sweep.kl.weight=[4]", "sweep.seed=[1, 2]") == [
        *("weight-4_seed-1", "weight-4_seed-2", "lr-0.1_seed-1", "lr-0.1_seed-2")
    ]
    assert names("", "sweep.seed=[0, 1]") == ["seed-0", "seed-1"]
    assert names("members: {a: {}, b: {}}", "sweep.seed=[0]") == ["a_seed-0", "b_seed-0"]


def test_without_a_sweep_a_file_is_what_it_was() -> None:
    Path("x.yaml").write_text("extends: base.yaml\nsweep: {seed: [1]}\n")
    assert isinstance(load("x.yaml", ["sweep=null"]), Experiment)
    Path("y.yaml").write_text("extends: x.yaml\nsweep: null\n")
    assert isinstance(load("y.yaml"), Experiment)
    Path("y.yaml").write_text("extends: x.yaml\nsweep: {seed: [5], kl.weight: [1]}\n")
    loaded = load("y.yaml")
    assert isinstance(loaded, Suite) and list(loaded.members) == ["seed-5_weight-1"]
    assert names("members: {a: {}}\nsweep: {seed: [1]}", "sweep=null") == ["a"]


def test_the_members_of_a_base_can_be_left_out() -> None:
    Path("pair.yaml").write_text("extends: base.yaml\nmembers: {a: {}, b: {}}\n")
    Path("x.yaml").write_text("extends: pair.yaml\nmembers: null\nsweep: {seed: [1]}\n")
    loaded = load("x.yaml")
    assert isinstance(loaded, Suite) and list(loaded.members) == ["seed-1"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            "3",
            "sweep: expected a mapping of keys to lists of values, or a list of such mappings, got 3",
        ),
        (
            "[]",
            "sweep: expected a mapping of keys to lists of values, or a list of such mappings, got []",
        ),
        ("[{seed: [1]}, 3]", "sweep[1]: expected a mapping of keys to lists of values, got 3"),
        (
            "{}",
            "sweep: names no key; add one, such as kl.weight: [0.1, 1], or remove the sweep (sweep=null)",
        ),
        ("{kl.weight: []}", "sweep.kl.weight: the list is empty; give it a value, or remove the key"),
        ("{kl.weight: 0.1}", "sweep.kl.weight: expected a list of values, got 0.1"),
        ("{kl.weight: '${x}'}", "sweep.kl.weight: expected a list of values, got '${x}'"),
        ("{kl: {}}", "sweep.kl: expected a list of values, got {}"),
        ("{kl..weight: [1]}", "sweep.kl..weight: expected a key such as kl.weight"),
        ("{seed: [0, 1, 0]}", "sweep.seed: 0 is given 2 times; give it once"),
        ("{kl.weight: [1], kl: {weight: [2]}}", "sweep.kl.weight: is given twice; keep one of the lists"),
        (
            "{kl: [{weight: 1}], kl.weight: [2]}",
            "sweep.kl and sweep.kl.weight: one lies within the other; sweep one of them",
        ),
        ("{name: [a]}", "sweep.name: a member is named after its values; remove it"),
        ("{runs_dir: [a]}", "sweep.runs_dir: is the same for all members; set it outside of the sweep"),
        (
            "{compare.draws: [1, 2]}",
            "sweep.compare.draws: one page compares all members; set it outside of the sweep",
        ),
        (
            "{seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], trainer.max_steps: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "
            "kl.weight: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}",
            "sweep: has 1100 combinations, the most is 1000; split it into files",
        ),
    ],
)
def test_sweeps_that_cannot_be_used(sweep: str, message: str) -> None:
    assert problems(f"sweep: {sweep}") == [message]


def test_all_problems_of_a_sweep_come_at_once() -> None:
    assert problems("sweep: [{seed: [], name: [a]}, {kl.weight: 3}]") == [
        "sweep.seed: the list is empty; give it a value, or remove the key",
        "sweep.name: a member is named after its values; remove it",
        "sweep.kl.weight: expected a list of values, got 3",
    ]


def test_too_many_once_crossed() -> None:
    members = ", ".join(f"m{number}: {{}}" for number in range(11))
    seeds = ", ".join(map(str, range(100)))
    assert problems(f"members: {{{members}}}\nsweep: {{seed: [{seeds}]}}") == [
        "sweep: makes 1100 members, the most is 1000; split it into files"
    ]


def test_names_that_collide() -> None:
    fix = "leave one out, or write it under `members` with a name of its own"
    assert problems("sweep: {kl.weight: [1, 1.0]}\nmembers: {a: {}, b: {}}") == [
        f"sweep: {{kl.weight: 1}} and {{kl.weight: 1.0}} would both be named weight-1; {fix}"
    ]
    assert problems("sweep: {data.root: [a b, A-b]}") == [
        f"sweep: {{data.root: 'a b'}} and {{data.root: 'A-b'}} would both be named root-A-b; {fix}"
    ]
    text = "members: {a: {}, a_seed-1: {}}\nsweep: [{kl.weight: [2]}, {seed: [1], kl.weight: [2]}]"
    assert problems(text) == [
        "sweep: a {seed: 1, kl.weight: 2} and a_seed-1 {kl.weight: 2} would both be named "
        f"a_seed-1_weight-2; {fix}"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.kl.weight=3", "sweep.kl.weight: expected a list of values, got 3"),
        ("sweep.kl.weight=[]", "sweep.kl.weight: the list is empty; give it a value, or remove the key"),
        ("sweep.seed=null", "sweep.seed=null: the sweep has no seed; it has kl.weight"),
        (
            "sweep.kl.weight=null",
            "sweep: names no key; add one, such as kl.weight: [0.1, 1], or remove the sweep (sweep=null)",
        ),
        ("kl.weight=3", "kl.weight=3: the sweep sets kl.weight; change its list: sweep.kl.weight=[…]"),
        ("kl=null", "kl=null: the sweep sets kl.weight; change its list: sweep.kl.weight=[…]"),
        (
            "members.weight-0.1.kl.weight=3",
            "members.weight-0.1.kl.weight=3: the sweep sets kl.weight; change its list: sweep.kl.weight=[…]",
        ),
        (
            "members.weight-0.2.seed=3",
            "members.weight-0.2.seed=3: x.yaml has no member 'weight-0'; did you mean weight-0.1?",
        ),
        ("members.weight-3.name=a", "members.weight-3.name: a member is named after its key; remove it"),
    ],
)
def test_overrides_that_cannot_be_used(override: str, message: str) -> None:
    assert problems("sweep: {kl.weight: [0.1, 3]}", override) == [message]


def test_an_override_beside_a_swept_key_is_no_conflict() -> None:
    (one,) = suite("sweep: {kl.weight: [1]}", "kl={temperature: 2}", "kl.positions=all").members.values()
    assert (one.kl.weight, one.kl.temperature, one.kl.positions) == (1, 2, "all")


def test_an_unknown_key_is_named_once_with_the_nearest() -> None:
    assert problems("sweep: {kl.weigth: [1, 2, 3]}") == ["kl.weigth: unknown key; did you mean kl.weight?"]
    assert problems("sweep: {intervention.layr: [1, 2]}") == [
        "intervention.layr: unknown key; did you mean intervention.layer?"
    ]


def test_a_problem_of_many_members_is_told_once_with_their_number() -> None:
    found = problems("sweep: [{seed: [0, 1, 2, 3, 4, x], kl.weight: [-1]}, {kl.weight: [3]}]")
    assert found == [
        "seed-0_weight--1, seed-1_weight--1, seed-2_weight--1 and 3 more: kl.weight: expected at least 0, "
        "got -1.0",
        "seed-x_weight--1: seed: expected a whole number, got 'x'",
    ]


@pytest.mark.parametrize("name", ["a b", "a/b", "-a", "é", "a;b", "..", "", "lr=0.1"])
def test_member_names_that_would_need_quoting(name: str) -> None:
    (line,) = problems(f'members: {{"{name}": {{}}, fine.1_x-y: {{}}}}\nsweep: {{seed: [0]}}')
    assert line.startswith(f"members.{name}: names a folder and stands in commands; use letters, digits,")
