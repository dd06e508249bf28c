"""A file of answers that grows as they are made, so that a killed process loses none."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from em.datamodules.answers import Answer, read_answers
from em.errors import RunError
from em.files import write_json
from em.generation.requests import Request


class AnswerFile:
    """JSONL that grows by one line for each answer; `NAME.settings.json` beside it says how they were made.

    A process that is killed leaves at most one half-written line, the last, which is taken off again. One
    process at a time may write.

    Args:
        path: the file; need not exist.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.dropped = 0  # half-written lines that were taken off
        self._stream: FileIO | None = None

    @property
    def settings_path(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.settings.json")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self) -> list[Answer]:
        """All whole answers, in the order in which they were made.

        Raises:
            DataError: a line is damaged; names it.
            RunError: the last line is half-written and another process is at it.
        """
        if _has_half_line(self.path):
            self.lock()
        if not self.path.is_file() or self.path.stat().st_size == 0:
            return []
        return read_answers(self.path)

    def append(self, answer: Answer) -> None:
        """Write one answer; it is safe from the death of the process when this returns.

        Raises:
            RunError: another process writes, or the file cannot be written (for example a full disk).
        """
        stream, line = self.lock(), _line(answer)
        try:
            while line:  # a nearly full disk takes a part
                line = line[stream.write(line) :]
        except OSError as error:
            self.close()  # opening it again takes off what was half written
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space, then run the "
                "same command again: it goes on after the last whole answer"
            ) from error

    def missing(self, requests: Sequence[Request], model: str) -> list[Request]:
        """Those requests that this model has not answered yet, in order.

        Raises:
            RunError: a stored answer is to another text under the same prompt id.
        """
        stored = self.stored(model)
        for request in requests:
            answer = stored.get(request.key)
            if answer is not None and list(answer.messages) != [dict(m) for m in request.prompt.messages]:
                raise RunError(
                    f"{self.path}: holds an answer to another wording of {request.name}; write to another "
                    "file, or remove this one to ask again"
                )
        return [request for request in requests if request.key not in stored]

    def stored(self, model: str) -> dict[tuple[str, str, int], Answer]:
        """A model's answers by question set, prompt and sample, as `Request.key`.

        Raises:
            RunError: two answers have the same of all three.
        """
        found: dict[tuple[str, str, int], Answer] = {}
        for answer in self.read():
            if answer.model != model:
                continue
            key = (answer.questions, answer.prompt, answer.sample)
            if key in found:
                raise RunError(
                    f"{self.path}: holds two answers of {model} to {answer.questions}/{answer.prompt}, "
                    f"sample {answer.sample}; remove one of these lines"
                )
            found[key] = answer
        return found

    def claim(self, model: str, settings: Mapping[str, Any]) -> None:
        """Record how a model's answers are made, or compare with what is recorded.

        Raises:
            RunError: its answers in this file were made otherwise, or nobody knows how.
        """
        recorded = self._recorded()
        new = json.loads(json.dumps(settings))
        if model not in recorded:
            if self.stored(model):
                raise RunError(
                    f"{self.path}: holds answers of {model}, but {self.settings_path.name} does not say how "
                    "they were made; write to another file"
                )
            self.lock()
            write_json(self.settings_path, {**recorded, model: new})
            return
        old = recorded[model]
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if keys:
            what = "; ".join(f"{key}: {old.get(key)!r} → {new.get(key)!r}" for key in keys)
            raise RunError(
                f"{self.path}: holds answers of {model} that were made otherwise: {what}; write to another "
                "file, or remove this one"
            )

    def lock(self) -> FileIO:
        """Hold the file for writing, without a half line at its end.

        Raises:
            RunError: another process holds it, or it cannot be opened.
        """
        if self._stream is not None:
            return self._stream
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = FileIO(self.path, "a+")
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise RunError(
                f"{self.path}: another process writes answers to it; wait, or use another file"
            ) from error
        if _has_half_line(self.path):
            stream.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            self.dropped += 1
        self._stream = stream
        return stream

    def close(self) -> None:
        """Let other processes write."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _recorded(self) -> dict[str, Any]:
        try:
            value = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.settings_path}: cannot be read ({error}); write to another file"
            ) from error
        if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
            raise RunError(f"{self.settings_path}: is not a record of settings; write to another file")
        return value


def _line(answer: Answer) -> bytes:
    row = answer.row()
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, from an endpoint
        return json.dumps(row).encode() + b"\n"


def _has_half_line(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                return False
            stream.seek(-1, os.SEEK_END)
            return stream.read() != b"\n"
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
