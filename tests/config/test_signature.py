"""Options are read from source: nothing here may be imported by the reader."""

import importlib
import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import pytest

from em.config.build import kinds, resolve
from em.config.signature import Option, attribute, options, signature
from em.errors import ConfigError

POISON = "raise RuntimeError('this file must not be executed')\n"
MODULE = (
    POISON
    + """
from __future__ import annotations
import typing as t
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, Optional, Union
from torch import nn
from .parts.points import Point, Base as Renamed
from missing_package import Gone

class Plain:
    def __init__(self, first, /, layer: int, *rest, scale: float = 1e-4, names: list[str] | None = None,
                 mode: Literal["a", "b"] = "a", point: Point = "mlp", other: Path = Path("x")):
        pass

class Child(Plain):
    pass

class Kwargs(Renamed):
    def __init__(self, own: bool = False, **kwargs):
        super().__init__(**kwargs)

class Open:
    def __init__(self, own: int, **kwargs): ...

class Module(nn.Module):
    def __init__(self, width: int = 3, **kwargs): ...

class Orphan(Gone):
    pass

class Empty: ...

@dataclass
class Record:
    a: int
    b: "Optional[float]" = None
    c: dict[str, int] = field(default_factory=dict)
    d: ClassVar[int] = 3
    _: KW_ONLY
    e: Union[int, str] = field(default=3)
    f: int = field(init=False)
    g: tuple[int, ...] = (1, 2)

@dataclass(frozen=True)
class SubRecord(Record):
    h: t.Sequence[int] = ()

class Loop(Loop2): ...
class Loop2(Loop): ...

def factory(x: int, y: str = "z", **more): ...
"""
)
POINTS = (
    POISON
    + """
from typing import Literal
Point = Literal["block", "mlp"]
class Base:
    def __init__(self, base: str, own: int = 2): ...
"""
)


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sigpkg"
    (folder / "parts").mkdir(parents=True)
    (folder / "__init__.py").write_text(POISON + "from .mod import Plain as Exported\nfrom .round import X\n")
    (folder / "mod.py").write_text(MODULE)
    (folder / "round.py").write_text("from sigpkg import X\n")
    (folder / "broken.py").write_text("x = 1\ndef (:\n")
    (folder / "parts" / "points.py").write_text(POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def test_keywords_with_types_and_defaults() -> None:
    assert options("sigpkg.mod.Plain") == {
        "layer": Option("layer", int, None, required=True),
        "scale": Option("scale", float, 1e-4),
        "names": Option("names", list[str] | None, None),
        "mode": Option("mode", Literal["a", "b"], "a"),
        "point": Option("point", Literal["block", "mlp"], "mlp"),
        "other": Option("other", Any, "Path('x')"),
    }
    assert "sigpkg" not in sys.modules


def test_base_and_reexport_have_the_same_options() -> None:
    assert options("sigpkg.mod.Child") == options("sigpkg.mod.Plain") == options("sigpkg.Exported")


def test_kwargs_merge_the_base_and_own_options_win() -> None:
    assert options("sigpkg.mod.Kwargs") == {
        "base": Option("base", str, None, required=True),
        "own": Option("own", bool, False),
    }
    assert not signature("sigpkg.mod.Kwargs").open


def test_kwargs_of_a_class_without_base_are_open() -> None:
    assert signature("sigpkg.mod.Open").open
    assert not signature("sigpkg.mod.Module").open
    assert signature("sigpkg.mod.Orphan").open
    assert signature("sigpkg.mod.factory").open


def test_dataclass_fields() -> None:
    found = options("sigpkg.mod.SubRecord")
    assert {name: (option.annotation, option.required) for name, option in found.items()} == {
        "a": (int, True),
        "b": (float | None, False),
        "c": (dict[str, int], False),
        "e": (int | str, False),
        "g": (tuple[int, ...], False),
        "h": (found["h"].annotation, False),
    }
    assert found["h"].annotation.__args__ == (int,)
    assert found["g"].default == (1, 2)


def test_nothing_to_read_is_not_an_error() -> None:
    assert options("sigpkg.mod.Empty") == {}
    assert not signature("sigpkg.mod.Empty").open
    assert options("sigpkg.mod.Loop") == {}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("sigpkg.mod.Plane", "sigpkg.mod has no class 'Plane'; did you mean Plain?"),
        ("sigpkg.nope.X", "no module 'sigpkg.nope'"),
        ("nowhere_at_all.X", "no module 'nowhere_at_all'"),
        ("Plain", "expected a dotted path such as package.module.Class, got 'Plain'"),
        ("sigpkg..X", "no module 'sigpkg.'"),
        ("sigpkg.X", "sigpkg.X is imported in a circle"),
        ("sys.X", "sys has no Python source to read options from"),
    ],
)
def test_messages(target: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(target)
    assert caught.value.problems == [message]


def test_syntax_error_names_the_line() -> None:
    with pytest.raises(ConfigError, match=r"broken\.py:2: "):
        options("sigpkg.broken.X")


def test_reads_classes_of_heavy_packages() -> None:
    found = options("lightning.pytorch.callbacks.EarlyStopping")
    assert found["monitor"] == Option("monitor", str, None, required=True)
    assert found["stopping_threshold"].annotation == float | NoneType


def test_class_attributes_are_read_from_the_class_or_a_base() -> None:
    assert attribute("sigpkg.mod.Record", "d") == 3
    assert attribute("sigpkg.mod.Record", "missing") is None
    assert attribute("sigpkg.mod.Orphan", "d") is None
    found = {
        kind: attribute(resolve({"kind": kind}, "interventions"), "fixed") for kind in kinds("interventions")
    }
    assert {kind for kind, fixed in found.items() if fixed} == {"ablation", "steering"}
    assert set(found.values()) == {True, False}
