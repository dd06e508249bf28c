"""The disk budget of all stores together."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from em.states.room import make_room


def shards(root: Path, **sizes: int) -> dict[str, Path]:
    """Files by name, the first one used longest ago."""
    paths = {}
    for age, (name, size) in enumerate(sizes.items()):
        path = root / f"store{age % 2}" / f"shard-{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (1e9 + age, 1e9 + age))
        paths[name] = path
    return paths


def left(paths: dict[str, Path]) -> str:
    return "".join(name for name, path in paths.items() if path.exists())


@pytest.mark.parametrize(
    ("needed", "limit", "expected"),
    [(60, 100, "abc"), (61, 100, "bc"), (80, 100, "bc"), (81, 100, "c"), (100, 100, ""), (0, 30, "bc")],
)
def test_the_longest_unused_go_first(tmp_path: Path, needed: int, limit: int, expected: str) -> None:
    paths = shards(tmp_path, a=20, b=10, c=10)
    assert make_room(tmp_path, needed, {}, limit)
    assert left(paths) == expected


def test_what_cannot_fit_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = shards(tmp_path, a=20, b=10)
    assert not make_room(tmp_path, 101, {}, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert not make_room(tmp_path, 41, {}, 100)
    assert left(paths) == "ab"
    assert make_room(tmp_path, 25, {}, 100), "the disk is nearly full, so that others have to go"
    assert left(paths) == "b"


def test_shards_in_use_are_kept_as_long_as_possible(tmp_path: Path) -> None:
    paths = shards(tmp_path, a=20, b=20, c=20)
    assert make_room(tmp_path, 60, {paths["a"]: 20}, 60)
    assert left(paths) == "a"
    paths = shards(tmp_path, a=20, b=20)
    # 5 of b's bytes are needed, and 25 are not stored yet: 40 + 25 are too many, 20 + 30 fit.
    assert make_room(tmp_path, 50, {paths["a"]: 20, paths["b"]: 5}, 60)
    assert left(paths) == "a"


def test_unfinished_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    shards(tmp_path, a=1)
    old, young = (tmp_path / "store0" / f".shard-{name}.safetensors.7.tmp" for name in ("old", "young"))
    for path, age in ((old, 7200), (young, 60)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age, time.time() - age))
    assert make_room(tmp_path, 1, {}, 100)
    assert not old.exists() and young.exists()
