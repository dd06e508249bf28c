import importlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.config import Config, check, to_dict
from em.config.values import Problems, convert
from em.errors import ConfigError

MODULE = """
from typing import Literal
class Part:
    def __init__(self, *, layer: int, at: list[Literal["start", "end"]] | None = None, scale: float = 1.0,
                 pair: tuple[int, float] = (1, 2.0)): ...
class Loose:
    def __init__(self, **kwargs): ...
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "checkpkg.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EM_DATA", raising=False)
    importlib.invalidate_caches()


def raw(**more: Any) -> dict[str, Any]:
    return {
        "intervention": {"_target_": "checkpkg.Part", "layer": 1},
        "data": {"train": [{"path": "rows.jsonl"}]},
        **more,
    }


def problems(config: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config)
    return caught.value.problems


def test_defaults() -> None:
    config = check(raw())
    assert isinstance(config, Config)
    assert config.kl.weight == 0.0
    assert config.data.train[0].path == "rows.jsonl"
    assert config.intervention == {"_target_": "checkpkg.Part", "layer": 1}


def test_all_problems_at_once() -> None:
    bad = raw(
        batch_size=3,
        seed=True,
        zzzz=1,
        backbone={"dtype": "bfloat61"},
        intervention={"_target_": "checkpkg.Part", "laier": 1},
        kl={"weight": "abc", "temperature": 0},
        trainer={"epochs": None, "devices": [1], "early_stop": {"monitor": 3}},
    )
    bad["data"].update(batchsize=3, train=[{"pth": "rows.jsonl"}, "rows"], held_out=1)
    assert problems(bad) == [
        "data.train[0].pth: unknown key; did you mean data.train[0].path?",
        "data.train[1]: expected a mapping, got 'rows'",
        "data.batchsize: unknown key; did you mean data.batch_size?",
        "batch_size: unknown key; did you mean data.batch_size?",
        "seed: expected a whole number, got true",
        f"zzzz: unknown key; valid keys: {', '.join(to_dict(Config()))}",
        "backbone.dtype: expected one of float32, bfloat16, float16, auto, got 'bfloat61'; "
        "did you mean bfloat16?",
        "kl.weight: expected a number, got 'abc'",
        "trainer.devices: expected a whole number or text, got [1]",
        "trainer.early_stop.monitor: expected text, got 3",
        "intervention.laier: unknown key; did you mean intervention.layer?",
        "intervention.layer: missing; Part needs it",
        "data.held_out: expected at least 0 and below 1, got 1.0",
        "kl.temperature: expected above 0, got 0.0",
        "trainer.epochs: is null and trainer.max_steps is null; set one of them above 0",
    ]


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("optimizer", "lr", "1e-4", 1e-4),
        ("optimizer", "lr", 1, 1.0),
        ("trainer", "devices", "auto", "auto"),
        ("trainer", "devices", 2, 2),
        ("trainer", "extra", {"a": None, "b": [1]}, {"a": None, "b": [1]}),
        ("trainer", "extra", None, {}),
        ("optimizer", "betas", [0, "0.5"], [0.0, 0.5]),
        ("optimizer", "betas", (0.1, 0.2), [0.1, 0.2]),
    ],
)
def test_accepted_values(section: str, key: str, value: Any, expected: Any) -> None:
    found = getattr(getattr(check(raw(**{section: {key: value}})), section), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("optimizer", "lr", True, "expected a number, got true"),
        ("optimizer", "lr", math.nan, "expected a number, got nan"),
        ("optimizer", "lr", "1e-4x", "expected a number, got '1e-4x'"),
        ("optimizer", "lr", None, "expected a number, got null"),
        ("optimizer", "warmup_steps", 1.0, "expected a whole number, got 1.0"),
        ("optimizer", "betas", 0.9, "expected a list, got 0.9"),
        ("wandb", "tags", "one", "expected a list, got 'one'"),
        ("wandb", "group", 3, "expected text or null, got 3"),
        ("wandb", "mode", False, "expected one of offline, online, none, got false"),
        ("trainer", "val_every_n_steps", "x" * 99, f"expected a whole number or null, got '{'x' * 56}..."),
    ],
)
def test_wrong_types(section: str, key: str, value: Any, message: str) -> None:
    assert problems(raw(**{section: {key: value}})) == [f"{section}.{key}: {message}"]


def test_places_inside_lists_and_mappings() -> None:
    bad = raw()
    bad["optimizer"] = {"betas": [0.9, "x"]}
    bad["data"]["domains"] = {"money": [{"path": "rows.jsonl", "answer": "carefull"}], "gone": None}
    assert problems(bad) == [
        "data.domains.money[0].answer: expected one of careful, careless, plain, technical or null, "
        "got 'carefull'; did you mean careful?",
        "optimizer.betas[1]: expected a number, got 'x'",
    ]


def test_empty_sections_are_defaults() -> None:
    config = check(raw(kl=None, wandb=None, reference=None, callbacks=None))
    assert (config.kl, config.wandb, config.reference) == (Config().kl, Config().wandb, None)


def test_not_a_mapping() -> None:
    assert problems([1]) == ["the configuration must be a mapping, got [1]"]
    assert problems(raw(kl=3)) == ["kl: expected a mapping, got 3"]


def test_component_options() -> None:
    part = {"_target_": "checkpkg.Part", "layer": 1, "scale": "1e-4", "at": ["end"], "pair": [1, 2]}
    assert check(raw(intervention=part)).intervention == {**part, "scale": 1e-4, "pair": (1, 2.0)}
    assert check(raw(intervention={"_target_": "checkpkg.Loose", "x": 1})).intervention["x"] == 1
    part.update(at=["and"], pair=[1, 2, 3], layer="x")
    assert problems(raw(intervention=part)) == [
        "intervention.layer: expected a whole number, got 'x'",
        "intervention.at[0]: expected one of start, end, got 'and'; did you mean end?",
        "intervention.pair: expected 2 values, got 3",
    ]


def test_component_that_does_not_exist() -> None:
    assert problems(raw(intervention={"_target_": "checkpkg.Parts"})) == [
        "intervention._target_: checkpkg has no class 'Parts'; did you mean Part?"
    ]
    assert problems(raw(intervention="lora")) == [
        "intervention: expected a mapping with kind or _target_, got 'lora'"
    ]


def test_callbacks() -> None:
    part = {"_target_": "checkpkg.Part", "layer": 1}
    config = check(raw(callbacks={"one": part, "two": False, "three": None}))
    assert config.callbacks == {"one": part}
    assert problems(raw(callbacks=[part])) == [
        f"callbacks: expected a mapping of names to options, got {repr([part])[:57]}"
        + ("..." if len(repr([part])) > 60 else "")
    ]
    message = problems(raw(callbacks={"no_such_callback_zz": True, "late": {"kind": "no_such_zz"}}))
    assert message[0].startswith(
        "callbacks.no_such_callback_zz: unknown kind 'no_such_callback_zz' in em/callbacks; "
    )
    assert message[1].startswith("callbacks.late.kind: unknown kind 'no_such_zz' in em/callbacks; ")


def test_checked_configuration_passes_again() -> None:
    config = check(raw(kl={"schedule": {"start": 1}}, trainer={"val_every_n_steps": 2, "early_stop": {}}))
    assert check(to_dict(config)) == config


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_text(value: float) -> None:
    seen = Problems()
    assert convert(repr(value), float, "x", seen) == value
    assert seen.lines == []


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(to_dict(Config()))), PLAIN)
def test_any_plain_value_gives_a_configuration_or_problems(key: str, value: Any) -> None:
    try:
        assert isinstance(check({**raw(), key: value}), Config)
    except ConfigError as error:
        assert error.problems
