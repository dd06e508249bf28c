import importlib
from collections import Counter
from pathlib import Path

import pytest

from em.config import build, resolve
from em.config.build import kinds
from em.errors import ConfigError

FILES = {
    "lora.py": "class Lora(Base): ...",
    "kl_drift.py": "class Helper(Base): ...\nclass KLDrift(Base): ...",
    "steering_vector.py": "class SteeringVector(Base): ...",
    "update.py": "class Update: ...",
    "helpers.py": "def helpers(): ...",
    "__init__.py": "",
}


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import em

    folder = tmp_path / "madeup"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(importlib.import_module("em.config.build"), "PACKAGE", tmp_path)
    monkeypatch.setattr(em, "__path__", [*em.__path__, str(tmp_path)])
    monkeypatch.setattr(em.__spec__, "submodule_search_locations", list(em.__path__))
    importlib.invalidate_caches()
    return "madeup"


def test_kinds_are_files_with_a_subclass_of_their_name(family: str) -> None:
    assert kinds(family) == ["kl_drift", "lora", "steering_vector"]
    assert kinds("no_such_family") == []


def test_resolve(family: str) -> None:
    assert resolve({"kind": "steering_vector"}, family) == "em.madeup.steering_vector.SteeringVector"
    assert resolve({"kind": "kl_drift", "x": 1}, family) == "em.madeup.kl_drift.KLDrift"
    assert resolve({"_target_": "a.b.C"}, family) == "a.b.C"


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"kind": "lorra"}, "unknown kind 'lorra' in em/madeup; did you mean lora?"),
        ({"kind": "zzz"}, "unknown kind 'zzz' in em/madeup; known kinds: kl_drift, lora, steering_vector"),
        ({"kind": 3}, "expected text, got 3"),
        ({}, "give kind or _target_, for example kind: kl_drift"),
        ({"kind": "lora", "_target_": "a.B"}, "give kind or _target_, not both"),
    ],
)
def test_resolve_messages(family: str, component: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(component, family)
    assert caught.value.problems == [message]


def test_build_passes_options_and_extra() -> None:
    assert build({"_target_": "collections.Counter", "a": 2}, "callbacks", b=3) == Counter(a=2, b=3)


def test_build_messages() -> None:
    with pytest.raises(ConfigError, match="nowhere.Thing: cannot be imported"):
        build({"_target_": "nowhere.Thing"}, "callbacks")
    with pytest.raises(ConfigError, match="collections.Thing: collections has no Thing"):
        build({"_target_": "collections.Thing"}, "callbacks")
