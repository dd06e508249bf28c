"""A file is written whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from em.errors import RunError
from em.files import expect_free, write_atomically, write_folder, write_json, write_tensors, write_text


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_contents_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "naïve\n")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "naïve\n"
    write_json(tmp_path / "a.json", {"é": [1, None, 0.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, None, 0.5]}
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(3.0)}, {"by": "test"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], torch.arange(3.0))
    write_text(tmp_path / "deep" / "a.txt", "new")
    assert (tmp_path / "deep" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "adapter.safetensors"
    write_tensors(path, {"x": torch.zeros(2)})
    before = path.read_bytes()
    monkeypatch.setattr(os, function, full_disk)
    with pytest.raises(RunError, match="No space left on device.*free some space.*runs_dir") as caught:
        write_tensors(path, {"x": torch.ones(2)})
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half(scratch: Path) -> None:
        scratch.write_text("ne")
        full_disk()

    with pytest.raises(RunError, match="cannot be written"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_that_is_a_bug_is_not_disguised(tmp_path: Path) -> None:
    def bug(scratch: Path) -> None:
        scratch.write_text("half")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        write_atomically(tmp_path / "a.txt", bug)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "runs" / "x" / "a.txt", "text")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "runs" / "a.txt", "text")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "a").write_text("a")
        full_disk()

    with pytest.raises(RunError, match=r"out: cannot be written \(No space left on device\); choose another"):
        write_folder(tmp_path / "deep" / "out", half)
    assert not list((tmp_path / "deep").iterdir())
    assert write_folder(tmp_path / "deep" / "out", lambda folder: (folder / "a").write_text("a")) == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_folder_in_use_is_named(tmp_path: Path) -> None:
    expect_free(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    expect_free(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="exists already; choose another folder"):
            expect_free(used)
