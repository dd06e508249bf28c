"""Read chat rows from JSONL files or hub datasets; every unusable row is named or counted."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from em.chat import Encoded, encode
from em.config.data_files import DATA_VARIABLE, find, places
from em.config.schema import DataConfig, SourceConfig
from em.errors import DataError

SHOWN = 5  # bad rows named in one message


@dataclass(frozen=True)
class Example:
    """One encoded conversation and where it comes from."""

    ids: list[int]
    answer: list[bool]
    where: str  # file:line
    prompt: str  # first user turn; the key of the held-out split and of clustered intervals
    label: str = ""  # `careful`/`careless` for paired rows

    @property
    def targets(self) -> int:
        """Answer tokens that some position predicts."""
        return sum(self.answer[1:])


@dataclass
class SourceReport:
    """What became of the rows of one source: rows = used + other_part + over_limit + all skipped."""

    source: str
    sha256: str | None
    rows: int = 0
    used: int = 0
    other_part: int = 0  # on the other side of the held-out split
    over_limit: int = 0  # after source.limit was reached
    truncated: int = 0  # of those used, cut to data.max_length
    tokens: int = 0
    answer_tokens: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def locate(path: str, root: str | None) -> Path:
    """A data file, below `root` or else EM_DATA, or in the working directory.

    Raises:
        DataError: it is in none of them.
    """
    found = find(path, root)
    if found is not None:
        return found
    hint = (
        "" if os.environ.get(DATA_VARIABLE) else f"; {DATA_VARIABLE} is not set: point it at your data folder"
    )
    raise DataError(f"no data file {path} (looked for {', '.join(map(str, places(path, root)))}){hint}")


def read(
    source: SourceConfig, data: DataConfig, tokenizer: Any, part: str
) -> tuple[list[Example], SourceReport]:
    """The encoded rows of one source that belong to `part`, in keyed order, at most `source.limit`.

    Args:
        part: `train`, `held_out` or `all`; the split is keyed by the prompt, so that the careful and
            the careless answer to one prompt, in whatever file, are always on the same side.

    Raises:
        DataError: the file or a row is unusable (with `on_bad_row: skip`, rows are counted instead), or
            nothing is left.
    """
    name = source.path or str(source.hub)
    rows, report = _rows(source, data)
    wanted: list[tuple[str, str, Any]] = []
    for where, row in rows:
        report.rows += 1
        if isinstance(row, DataError):
            wanted.append(("", where, row))
            continue
        try:
            messages = _messages(row, source, where)
        except DataError as error:
            wanted.append(("", where, error))
            continue
        prompt = next((str(m.get("content", "")) for m in messages if m.get("role") == "user"), "")
        if part == "all" or _held_out(prompt, data) == (part == "held_out"):
            wanted.append((prompt, where, messages))
        else:
            report.other_part += 1
    wanted.sort(key=lambda item: _hash(data.split_seed, "order", item[0], _line(item[1])))
    examples = _encode_all(wanted, source, data, tokenizer, report)
    if not examples:
        raise DataError(f"{name}: no usable rows in its {part} part ({_account(report)})")
    return examples, report


def _encode_all(
    wanted: list[tuple[str, str, Any]],
    source: SourceConfig,
    data: DataConfig,
    tokenizer: Any,
    report: SourceReport,
) -> list[Example]:
    examples: list[Example] = []
    errors: list[tuple[int, str]] = []
    reasons: Counter[str] = Counter()
    for prompt, where, messages in wanted:
        full = source.limit is not None and len(examples) >= source.limit
        if full and not isinstance(messages, DataError):
            report.over_limit += 1
            continue  # unreadable rows are still named or counted
        try:
            if isinstance(messages, DataError):
                raise messages
            on_long: Literal["error", "truncate"] = "truncate" if data.on_long == "truncate" else "error"
            encoded = encode(tokenizer, messages, data.max_length, on_long, where)
        except DataError as error:
            problem = str(error).removeprefix(where)
            too_long = not isinstance(messages, DataError) and "data.max_length" in problem
            if data.on_bad_row == "skip" or (too_long and data.on_long == "skip"):
                reasons["longer than data.max_length" if too_long else _reason(problem)] += 1
            else:
                errors.append((_line(where), str(error)))
            continue
        report.truncated += encoded.truncated
        examples.append(_example(encoded, where, prompt, source))
    if errors:
        more = f"\n… and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        hint = "\nfix the rows, or set data.on_bad_row=skip (data.on_long=skip|truncate for long ones)"
        raise DataError("\n".join(text for _, text in sorted(errors)[:SHOWN]) + more + hint)
    report.used = len(examples)
    report.tokens = sum(len(example.ids) for example in examples)
    report.answer_tokens = sum(example.targets for example in examples)
    report.skipped = dict(reasons)
    return examples


def _example(encoded: Encoded, where: str, prompt: str, source: SourceConfig) -> Example:
    return Example(encoded.ids, encoded.answer, where, prompt, source.answer or "")


def _line(where: str) -> int:
    return int(where.rpartition(":")[2])


def _reason(problem: str) -> str:
    """The problem without what differs from row to row: its turn, details and the fix."""
    general = re.sub(r"^turn \d+ \(\w+\): ", "", problem.lstrip(": "))
    return re.split(r"[;(:]", general)[0].strip()[:80]


def _account(report: SourceReport) -> str:
    """Where the rows of a source went that gave nothing, and what to change."""
    skipped = f"; skipped {report.skipped}" if report.skipped else ""
    other = f", {report.other_part} in the other part" if report.other_part else ""
    fix = "; add rows or change data.held_out" if report.other_part else ""
    return f"{report.rows} rows read{other}{skipped}{fix}"


def _rows(source: SourceConfig, data: DataConfig) -> tuple[Iterator[tuple[str, Any]], SourceReport]:
    if source.hub is not None:
        return _hub_rows(source), SourceReport(f"hub:{source.hub}:{source.split}", None)
    path = locate(str(source.path), data.root)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return _file_rows(path), SourceReport(str(source.path), digest)


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    where = f"{path.name}:{number}"
                    yield where, _parse(line, where)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); is it complete, and gzip if it ends in .gz?"
        ) from error


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return DataError(f"{where}: not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of 5000 digits; brackets nested 1000 deep
        return DataError(f"{where}: not JSON that can be read ({error})")


def _hub_rows(source: SourceConfig) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise DataError("hub datasets need the package datasets: pip install datasets") from error
    try:
        table = datasets.load_dataset(source.hub, source.name, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        first = (str(error).strip().splitlines() or ["unknown error"])[0]
        raise DataError(f"hub dataset {source.hub} ({source.split}): cannot be loaded: {first}") from error
    for number, row in enumerate(table, 1):
        yield f"{source.hub}:{number}", row


def _messages(row: Any, source: SourceConfig, where: str) -> list[dict[str, Any]]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    if source.answer is not None:
        missing = [key for key in ("prompt", source.answer) if not isinstance(row.get(key), str)]
        if missing:
            raise DataError(
                f"{where}: lacks the text {missing[0]!r} of a paired row (answer: {source.answer})"
            )
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row[source.answer]},
        ]
    elif isinstance(row.get("messages"), list) and row["messages"]:
        messages = row["messages"]
    else:
        paired = "; it is a paired row: set answer: careful or careless" if "careless" in row else ""
        raise DataError(f"{where}: lacks a list under the key 'messages'{paired}")
    if not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{where}: every message must be an object with role and content")
    if source.system is not None and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": source.system}, *messages]
    return messages


def _held_out(prompt: str, data: DataConfig) -> bool:
    return _hash(data.split_seed, "split", prompt) / 2**64 < data.held_out


def _hash(*key: int | str) -> int:
    # surrogatepass: JSON may hold half a surrogate pair; `encode` names such a row.
    text = "\x1f".join(map(str, key)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
