"""Where published data is kept: never where git would take it, and never over other rows unasked."""

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from em.datamodules.published import Checked, content_sha256
from em.errors import DataError, RunError
from em.files import write_atomically, write_json

SOURCES = "SOURCES.json"


def check_target(target: Path) -> None:
    """Refuse a folder where the data could be committed: inside a git work tree and not ignored.

    Raises:
        DataError: it is, or whether git ignores it cannot be told.
    """
    target = target.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: is a file; give a folder with --out")
    root = next((place for place in (target, *target.parents) if (place / ".git").exists()), None)
    if root is None:
        return
    if target == root:
        raise DataError(f"{target}: is a git repository itself; give a folder outside it with --out")
    # A repository that the environment names would answer for its own files.
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    asked = ["git", "-C", str(root), "check-ignore", "--quiet", "--", str(target / "rows.jsonl.gz")]
    try:
        status = subprocess.run(asked, capture_output=True, env=own, check=False).returncode
    except OSError:
        status = 128
    if status:
        why = "git does not ignore it" if status == 1 else "git does not say whether it ignores it"
        raise DataError(
            f"{target}: lies in the git repository {root} and {why}, so the data could be published by "
            "accident; give a folder outside it with --out"
        )


def write_files(
    checked: list[Checked], terms: Path | None, target: Path, origin: dict[str, Any], force: bool = False
) -> list[str]:
    """Write `NAME.jsonl.gz`, the terms and SOURCES.json into `target`; equal files are left as they are.

    Args:
        origin: what SOURCES.json says of every file besides its name, rows and sha256.
        force: replace files of other content.

    Returns:
        The names that were written.

    Raises:
        DataError: a file is there with other content, or cannot be written.
    """
    sources = _read_sources(target, force)
    own = [(one.path, target / one.name) for one in checked]
    own += [(terms, target / terms.name)] if terms is not None else []
    stale = [(source, there) for source, there in own if not _same(source, there)]
    differing = [there.name for _, there in stale if there.exists()]
    if differing and not force:
        raise DataError(
            f"{target}: holds {', '.join(differing)} with other content; give --force, or another --out"
        )
    try:
        for source, there in stale:
            write_atomically(there, lambda scratch, source=source: _written(source, scratch))  # type: ignore[misc]
        for one in checked:
            sources[one.name] = {"name": one.name, "rows": one.rows, "sha256": one.sha256, **origin}
        listed = [sources[name] for name in sorted(sources)]
        write_json(target / SOURCES, {"sha256": "of the uncompressed rows", "files": listed})
    except RunError as error:
        raise DataError(
            f"{target}: cannot be written ({error.__cause__}); give another folder with --out"
        ) from error
    return [there.name for _, there in stale]


def _read_sources(target: Path, force: bool) -> dict[str, Any]:
    """What SOURCES.json says so far, by file name."""
    path = target / SOURCES
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(one["name"]): one for one in listed}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        if force:
            return {}
        raise DataError(f"{path}: is not what em wrote ({error!r}); give --force to replace it") from error


def _same(source: Path, there: Path) -> bool:
    if not there.is_file():
        return False
    try:
        return content_sha256(source) == content_sha256(there)
    except DataError:  # damaged, so it differs
        return False


def _written(source: Path, scratch: Path) -> None:
    """Gzip without time and name, so that equal rows give equal files; terms stay plain text."""
    if not source.name.endswith((".jsonl", ".jsonl.gz")):
        shutil.copyfile(source, scratch)
        return
    with (
        gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as rows,
        scratch.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
    ):
        shutil.copyfileobj(rows, packed)
