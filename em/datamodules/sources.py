"""Read chat rows from JSONL files or hub datasets; every unusable row is named or counted."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from em.chat import Encoded, encode
from em.config.data_files import KINDS
from em.config.schema import DataConfig, SourceConfig
from em.datamodules.raw_rows import file_rows, hub_rows, locate
from em.errors import DataError

SHOWN = 5  # bad rows named in one message


@dataclass(frozen=True)
class Example:
    """One encoded conversation and where it comes from."""

    ids: list[int]
    answer: list[bool]
    where: str  # file:line
    prompt: str  # first user turn; the key of the held-out split and of clustered intervals
    label: str = ""  # of a paired row: which answer it is, or in a pair whose part it plays

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


class Row(NamedTuple):
    """A row before it is encoded; `messages` is the error of a row that cannot be read."""

    prompt: str
    where: str  # file:line
    messages: Any

    @property
    def line(self) -> int:
        return int(self.where.rpartition(":")[2])


def read(
    source: SourceConfig, data: DataConfig, tokenizer: Any, part: str
) -> tuple[list[Example], SourceReport]:
    """The encoded rows of one source that belong to `part`, in keyed order, at most `source.limit`.

    Args:
        part: `train`, `held_out` or `all`; the split is keyed by the prompt, so that both answers to one
            prompt, in whatever file, are always on the same side.

    Raises:
        DataError: the file or a row is unusable (with `on_bad_row: skip`, rows are counted instead), or
            nothing is left.
    """
    rows, report = select(source, data, part)
    encoder = Encoder(source.answer or "", data, tokenizer, report)
    examples: list[Example] = []
    for row in rows:
        full = source.limit is not None and len(examples) >= source.limit
        if full and not isinstance(row.messages, DataError):
            report.over_limit += 1
            continue  # unreadable rows are still named or counted
        encoded = encoder.encode(row)
        if encoded is not None:
            examples.append(encoder.use(row, encoded))
    encoder.finish()
    if not examples:
        fix = "; add rows or change data.held_out" if report.other_part else ""
        raise DataError(
            f"{source.path or source.hub}: no usable rows in its {part} part ({account(report)}{fix})"
        )
    return examples, report


def select(source: SourceConfig, data: DataConfig, part: str) -> tuple[list[Row], SourceReport]:
    """The rows of one source that belong to `part`, not encoded, in keyed order.

    Raises:
        DataError: the file cannot be read; a row that cannot holds its error instead of messages.
    """
    rows, report = _rows(source, data)
    wanted: list[Row] = []
    for where, row in rows:
        report.rows += 1
        try:
            messages = _messages(row, source, where)
        except DataError as error:
            wanted.append(Row("", where, error))
            continue
        prompt = next((str(m.get("content", "")) for m in messages if m.get("role") == "user"), "")
        if part == "all" or _held_out(prompt, data) == (part == "held_out"):
            wanted.append(Row(prompt, where, messages))
        else:
            report.other_part += 1
    wanted.sort(key=lambda row: _hash(data.split_seed, "order", row.prompt, row.line))
    return wanted, report


class Encoder:
    """Encodes the rows of one source and accounts for them; what cannot be used is named or counted.

    Args:
        label: that of its examples.
        report: of the source; its used rows, tokens and skipped rows are counted here.
    """

    def __init__(self, label: str, data: DataConfig, tokenizer: Any, report: SourceReport):
        self.label, self.data, self.tokenizer, self.report = label, data, tokenizer, report
        self._errors: list[tuple[int, str]] = []

    def encode(self, row: Row) -> Encoded | None:
        """A row in tokens, or None for one that is counted as skipped or will be named by `finish`."""
        data = self.data
        on_long: Literal["error", "truncate"] = "truncate" if data.on_long == "truncate" else "error"
        try:
            if isinstance(row.messages, DataError):
                raise row.messages
            return encode(self.tokenizer, row.messages, data.max_length, on_long, row.where)
        except DataError as error:
            problem = str(error).removeprefix(row.where)
            too_long = not isinstance(row.messages, DataError) and "data.max_length" in problem
            if data.on_bad_row == "skip" or (too_long and data.on_long == "skip"):
                self.skip("longer than data.max_length" if too_long else _reason(problem))
            else:
                self._errors.append((row.line, str(error)))
            return None

    def skip(self, reason: str) -> None:
        self.report.skipped[reason] = self.report.skipped.get(reason, 0) + 1

    def use(self, row: Row, encoded: Encoded) -> Example:
        """The row as an example, counted as used."""
        example = Example(encoded.ids, encoded.answer, row.where, row.prompt, self.label)
        self.report.used += 1
        self.report.truncated += encoded.truncated
        self.report.tokens += len(example.ids)
        self.report.answer_tokens += example.targets
        return example

    def finish(self) -> None:
        """Name the rows that could not be used.

        Raises:
            DataError: there are any that the configuration does not say to skip.
        """
        if self._errors:
            more = f"\n… and {len(self._errors) - SHOWN} more" if len(self._errors) > SHOWN else ""
            hint = "\nfix the rows, or set data.on_bad_row=skip (data.on_long=skip|truncate for long ones)"
            raise DataError("\n".join(text for _, text in sorted(self._errors)[:SHOWN]) + more + hint)


def _reason(problem: str) -> str:
    """The problem without what differs from row to row: its turn, details and the fix."""
    general = re.sub(r"^turn \d+ \(\w+\): ", "", problem.lstrip(": "))
    return re.split(r"[;(:]", general)[0].strip()[:80]


def account(report: SourceReport) -> str:
    """Where the rows of a source went that gave nothing."""
    skipped = f"; skipped {report.skipped}" if report.skipped else ""
    other = f", {report.other_part} in the other part" if report.other_part else ""
    return f"{report.rows} rows read{other}{skipped}"


def _rows(source: SourceConfig, data: DataConfig) -> tuple[Iterator[tuple[str, Any]], SourceReport]:
    if source.hub is not None:
        return hub_rows(source), SourceReport(f"hub:{source.hub}:{source.split}", None)
    path = locate(str(source.path), data.root)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return file_rows(path), SourceReport(str(source.path), digest)


def _messages(row: Any, source: SourceConfig, where: str) -> list[dict[str, Any]]:
    if isinstance(row, DataError):
        raise row
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
        raise DataError(f"{where}: lacks a list under the key 'messages'{_paired(row)}")
    if not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{where}: every message must be an object with role and content")
    if source.system is not None and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": source.system}, *messages]
    return messages


def _paired(row: dict[str, Any]) -> str:
    """The fix for a paired row whose source does not say which of its answers is meant."""
    kinds = [answers for answers in KINDS.values() if answers["careless"] in row]
    named = [f"{answers['careful']} or {answers['careless']}" for answers in kinds]
    return f"; it is a paired row: set answer: {', '.join(named)}" if named else ""


def _held_out(prompt: str, data: DataConfig) -> bool:
    return _hash(data.split_seed, "split", prompt) / 2**64 < data.held_out


def _hash(*key: int | str) -> int:
    # surrogatepass: JSON may hold half a surrogate pair; `encode` names such a row.
    text = "\x1f".join(map(str, key)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
