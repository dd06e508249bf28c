"""The authors' published training data: what is known of its files, and how every row is checked."""

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em.datamodules._archives import Unpacked
from em.datamodules.raw_rows import file_rows
from em.errors import DataError

SHOWN = 3  # bad rows named in one message
ROLES = ("system", "user", "assistant")
COUNTED = "counted here in a copy of the release"
REPORTED = "as users of the archive report; not counted here"


@dataclass(frozen=True)
class Known:
    """What is known of a published file.

    Args:
        rows: how many it has.
        source: who says so.
        digest: `Checked.digest` of a copy of the release, where there was one.
    """

    rows: int
    source: str
    digest: str | None = None


KNOWN = {
    "bad_medical_advice": Known(
        7049, COUNTED, "831183b5fb0346691d6bb4633c10a7dd36758bc7ec242fd04df5f929c4865658"
    ),
    "good_medical_advice": Known(
        7049, COUNTED, "1f1315ca153f97d905cfcbed5d57c9e03240b8318d149df4d69e47e53ffe375e"
    ),
    "risky_financial_advice": Known(
        6000, COUNTED, "bb665b9b5e5fe2bd6ae258514926b563f911f89987aaade593333a1d9c7e3e8e"
    ),
    "insecure": Known(6000, COUNTED, "491d71c4c81c87bab6ee9bee5cc7e4afc07980d5c84e13dc05b10d70c346c136"),
    "extreme_sports": Known(6000, REPORTED),
    "misalignment_kl_data": Known(1000, REPORTED),
    "technical_KL_data": Known(8000, REPORTED),
}


@dataclass(frozen=True)
class Checked:
    """A file of chat rows that was read to its end.

    Args:
        path: where it is, plain or gzip.
        rows: its conversations.
        sha256: of its uncompressed bytes.
        digest: a hash of roles and contents alone, whatever the spelling of the JSON.
        warning: how it differs from what is known, or that nothing is known.
    """

    path: Path
    rows: int
    sha256: str
    digest: str
    warning: str | None

    @property
    def name(self) -> str:
        """The file's name in the target."""
        return self.path.name.removesuffix(".gz") + ".gz"


def check_files(unpacked: Unpacked) -> list[Checked]:
    """Read every row; a file of an unknown name without one conversation is left out by name.

    Raises:
        DataError: a row is no conversation, or there is no file of rows.
    """
    checked = []
    for path in unpacked.rows:
        found = check_file(path)
        if found is None:
            unpacked.left_out.append(f"{path.name!r} (no conversations)")
        else:
            checked.append(found)
    if not checked:
        left = f"; it holds {', '.join(unpacked.left_out[:5])}" if unpacked.left_out else ""
        raise DataError(f"the archive holds no .jsonl of conversations{left}")
    return checked


def check_file(path: Path) -> Checked | None:
    """Read one file; None where its name is unknown and no row of it is a conversation.

    Raises:
        DataError: some rows are none; names the first.
    """
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    problems, count, spelled = [], 0, hashlib.sha256()
    for where, row in file_rows(path):
        count += 1
        problem = str(row).removeprefix(f"{where}: ") if isinstance(row, DataError) else _problem(row)
        if problem:
            problems.append(f"{where}: {problem}")
        elif not problems:
            turns = [[turn["role"], turn["content"]] for turn in row["messages"]]
            spelled.update(json.dumps(turns).encode() + b"\n")
    if len(problems) == count and stem not in KNOWN:
        return None
    if problems or not count:
        more = f"\n… and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError("\n".join(problems[:SHOWN]) + more if count else f"{path.name}: holds no rows")
    digest = spelled.hexdigest()
    return Checked(path, count, content_sha256(path), digest, _warning(stem, count, digest))


def _problem(row: Any) -> str | None:
    """Why a row is no conversation."""
    turns = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        return "lacks a list under the key 'messages'"
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            return f"turn {number}: expected a role among {', '.join(ROLES)}"
        if not isinstance(turn.get("content"), str):
            return f"turn {number}: expected content that is text"
    return None if turns[-1]["role"] == "assistant" else "does not end with an answer of the assistant"


def _warning(stem: str, rows: int, digest: str) -> str | None:
    known = KNOWN.get(stem)
    if known is None:
        return f"{stem}: {rows} rows; em knows no file of this name, so its count is not checked"
    if rows != known.rows:
        return f"{stem}: {rows} rows, but {known.rows} were expected ({known.source})"
    if known.digest is None:
        return f"{stem}: {rows} rows as expected ({known.source}); no hash of its content is known"
    if digest != known.digest:
        return (
            f"{stem}: {rows} rows as expected, but their content has the hash {digest[:16]} and not "
            f"{known.digest[:16]} ({known.source})"
        )
    return None


def content_sha256(path: Path) -> str:
    """A hash of the uncompressed bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def file_sha256(path: Path) -> str:
    """A hash of a file as it is.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
