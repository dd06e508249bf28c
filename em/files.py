"""Write files so that a crash or a full disk never leaves a damaged one."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from em.errors import RunError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step.

    Raises:
        RunError: the file cannot be written; what stood at `path` before is untouched.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        with scratch.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or set runs_dir to "
            "another disk, then run the same command again: it goes on from the last checkpoint"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # for example a parent that is a file: the first error is the one
            scratch.unlink()


def write_text(path: Path, text: str) -> None:
    """Atomic UTF-8 text file."""
    write_atomically(path, lambda scratch: _write_bytes(scratch, text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Atomic JSON file; NaN is refused, because JSON has none."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold but UTF-8 cannot
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=True)
    write_text(path, text + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Atomic safetensors file."""
    write_atomically(path, lambda scratch: _write_bytes(scratch, save(tensors, metadata)))


def expect_free(folder: Path) -> None:
    """Check that a folder can be made here: nothing stands there, or an empty folder.

    Raises:
        RunError: something does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder}: exists already; choose another folder with --out, or remove it")


def write_folder(folder: Path, write: Callable[[Path], Any]) -> Any:
    """Let `write` fill a scratch folder beside `folder`, then move it there in one step.

    Returns:
        What `write` returns.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            result = write(scratch)
            scratch.chmod(0o755)
            scratch.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another folder with --out"
        ) from error
    return result


def digest(path: Path) -> str:
    """A hash of a file's content.

    Raises:
        RunError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
