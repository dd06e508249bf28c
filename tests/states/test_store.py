"""The store: what goes in comes out bit for bit, and nothing else does."""

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from em.errors import StateError
from em.states import store as module
from em.states.store import Identity, StateStore
from tests.tiny import tiny_backbone

IDENTITY = Identity("f" * 16, "c" * 16, "float32", "final", 4, "sdpa", "cpu")


def states(seed: int, rows: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(root: Path, *keys: str) -> StateStore:
    """A store with one shard for each key."""
    store = StateStore(root, IDENTITY)
    for key in keys:
        store.put(key, states(ord(key)))
        store.flush()
    return store


def shard_of(store: StateStore, key: str) -> Path:
    (path,) = store.shards([key])
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    store = StateStore(tmp_path, IDENTITY)
    given = {name: states(seed, seed + 1, dtype) for seed, name in enumerate("abc")}
    for key, value in given.items():
        store.put(key, value)
    assert "a" not in store, "it waits for the shard to be full"
    store.flush()
    for opened in (store, StateStore(tmp_path, IDENTITY)):
        for key, value in given.items():
            assert opened.get(key).dtype == dtype and torch.equal(opened.get(key), value)
    assert len(list(store.folder.glob("shard-*"))) == 1
    assert store.shards(["a", "c", "unknown"]) == {shard_of(store, "a"): (1 + 3) * 4 * dtype.itemsize}


def test_shards_are_written_as_they_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 2 * 3 * 4 * 4)
    store = StateStore(tmp_path, IDENTITY)
    for key in "abcde":
        store.put(key, states(ord(key)))
    assert [key for key in "abcde" if key in store] == ["a", "b", "c", "d"]
    store.flush()
    store.put("a", states(1))  # known already
    store.flush()
    assert len(list(store.folder.glob("shard-*"))) == 3 and torch.equal(store.get("a"), states(ord("a")))


def test_a_waiting_state_is_a_copy(tmp_path: Path) -> None:
    store, value = StateStore(tmp_path, IDENTITY), states(0)
    store.put("a", value)
    value.zero_()
    store.flush()
    assert torch.equal(store.get("a"), states(0))


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="lacks the states of an example; run the same command again"):
        StateStore(tmp_path, IDENTITY).get("a")


# Whose states they are


@pytest.mark.parametrize("field", list(vars(IDENTITY)))
def test_every_part_of_the_identity_gives_another_folder(tmp_path: Path, field: str) -> None:
    value = getattr(IDENTITY, field)
    other = replace(IDENTITY, **{field: value + 1 if isinstance(value, int) else f"other {value}"})
    filled(tmp_path, "a")
    assert other.name != IDENTITY.name and "a" not in StateStore(tmp_path, other)


def test_the_identity_of_a_backbone() -> None:
    backbone = tiny_backbone()
    final = Identity.of(backbone, "final")
    assert (final.dtype, final.depth, final.hidden_size, final.device) == ("float32", "final", 32, "cpu")
    assert final.attention == "sdpa" and final == Identity.of(tiny_backbone(), "final")
    assert Identity.of(backbone, 1) == replace(final, depth=1)
    assert Identity.of(tiny_backbone(seed=1), "final").fingerprint != final.fingerprint
    with torch.autocast("cpu", torch.bfloat16):
        assert Identity.of(backbone, "final").dtype == "float32 under autocast to torch.bfloat16"
    angles = tiny_backbone(rope_parameters={"rope_type": "default", "rope_theta": 5.0})
    assert angles.fingerprint == backbone.fingerprint
    assert Identity.of(angles, "final").config != final.config, "rotary angles are no weights"
    backbone.to(torch.bfloat16)
    assert Identity.of(backbone, "final").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"fingerprint": "another"}', "holds the states of another model than its name says; remove the"),
        ("{", "cannot be read .*; remove the folder"),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path: Path, text: str, message: str) -> None:
    store = filled(tmp_path, "a")
    (store.folder / "identity.json").write_text(text)
    with pytest.raises(StateError, match=message):
        StateStore(tmp_path, IDENTITY)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot be stored.*set states\.folder to one that can be written"):
        StateStore(tmp_path / "file", IDENTITY)
    store = StateStore(tmp_path, IDENTITY)
    shutil.rmtree(store.folder)
    store.folder.write_text("")
    store.put("a", states(0))
    with pytest.raises(StateError, match=r"cannot be stored.*free some space, set states\.folder"):
        store.flush()


# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def without_sums(path: Path) -> None:
    save_file({"a": states(0)}, path)


DAMAGES: list[Callable[[Path], Any]] = [
    truncate,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"not safetensors at all"),
    without_sums,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_removed_and_named(
    tmp_path: Path, damage: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    store = filled(tmp_path, "a", "b")
    path = shard_of(store, "a")
    damage(path)
    again = StateStore(tmp_path, IDENTITY)
    assert "a" not in again and torch.equal(again.get("b"), states(ord("b"))) and not path.exists()
    said = capsys.readouterr().err
    assert path.name in said and "it is removed, and the states in it are computed again" in said


def test_a_changed_bit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shard_of(filled(tmp_path, "a", "b"), "a")
    flip(path)
    again = StateStore(tmp_path, IDENTITY)
    again.verify(["b"])
    assert "a" in again, "it was not asked about"
    again.verify(["a", "b"])
    assert "a" not in again and "b" in again and not path.exists()
    assert f"{path}: is damaged" in capsys.readouterr().err


# Other processes


def test_what_another_process_adds_and_removes_is_seen(tmp_path: Path) -> None:
    one = filled(tmp_path, "a")
    other = filled(tmp_path, "b")
    assert "b" not in one
    one.refresh()
    assert torch.equal(one.get("b"), states(ord("b")))
    other.clear()
    assert torch.equal(one.get("a"), states(ord("a"))), "an open shard outlives its file"
    one.refresh()
    assert "a" not in one and "b" not in one


def test_an_unfinished_file_is_not_read(tmp_path: Path) -> None:
    store = filled(tmp_path, "a")
    path = shard_of(store, "a")
    path.rename(path.with_name(f".{path.name}.123.tmp"))
    assert "a" not in StateStore(tmp_path, IDENTITY)


def write_some(root: Path, first: int) -> None:
    store = StateStore(root, IDENTITY)
    for seed in range(first, first + 40):
        store.put(str(seed), states(seed))
        store.flush()
        store.refresh()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_write_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # `spawn` would import torch anew, which takes seconds
    others = [context.Process(target=write_some, args=(tmp_path, first)) for first in (0, 20)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    store = StateStore(tmp_path, IDENTITY)
    store.verify(map(str, range(60)))
    assert all(torch.equal(store.get(str(seed)), states(seed)) for seed in range(60))
