"""Verdicts on disk: one line for each answer, written as soon as it is known."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from em.errors import RunError
from em.files import write_text
from em.judges.base import Score, Verdict


class VerdictFile:
    """Append-only JSONL: a header that says whose verdicts these are, then {"key", "verdict"} rows.

    Args:
        path: the file.
        judge: what `Judge.describe` says, with what it was asked; verdicts of another judge are refused.
    """

    def __init__(self, path: Path, judge: dict[str, Any]):
        self.path = path
        self.judge: dict[str, Any] = json.loads(json.dumps(judge))

    def read(self) -> dict[str, Verdict]:
        """The verdicts by the key of their answer; a last line that a kill cut off is taken out.

        Raises:
            RunError: another judge's file, or a damaged one.
        """
        if not self.path.is_file():
            return {}
        whole, _, rest = self._text().rpartition("\n")
        if rest:
            write_text(self.path, f"{whole}\n" if whole else "")
        lines = whole.splitlines()
        if not lines:
            return {}
        judge, verdicts = read_verdicts(self.path)
        if judge != self.judge:
            different = sorted(
                k for k in judge.keys() | self.judge.keys() if judge.get(k) != self.judge.get(k)
            )
            raise RunError(
                f"{self.path}: holds verdicts of another judge (different: {', '.join(different)}); choose "
                "another --out, or judge its answers with `python -m em judge`"
            )
        return verdicts

    def append(self, key: str, verdict: Verdict) -> None:
        """Add one verdict; it is in the file when this returns.

        Raises:
            RunError: the file cannot be written.
        """
        line = json.dumps({"key": key, "verdict": as_row(verdict)}, ensure_ascii=True)
        head = (
            ""
            if self.path.is_file() and self.path.stat().st_size
            else json.dumps({"judge": self.judge}) + "\n"
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(f"{head}{line}\n")
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space, then run the "
                "same command again: no verdict is asked for twice"
            ) from error

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path}: cannot be read ({error}); remove it, and judge again") from error


def read_verdicts(path: Path) -> tuple[dict[str, Any], dict[str, Verdict]]:
    """The judge of a file and its verdicts by answer.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        judge = rows[0]["judge"]
        return judge, {row["key"]: from_row(row["verdict"]) for row in rows[1:]}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path}: cannot be read as verdicts ({type(error).__name__}: {error}); give a file or folder "
            "that `python -m em eval` or `python -m em judge` wrote"
        ) from error


def as_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain data."""
    scores = {metric: asdict(score) for metric, score in verdict.scores.items()}
    row: dict[str, Any] = {"judge": verdict.judge, "scores": scores}
    if verdict.members:
        row["members"] = {name: as_row(one) for name, one in verdict.members.items()}
    return row


def from_row(row: dict[str, Any]) -> Verdict:
    """The inverse of `as_row`."""
    scores = {metric: Score(**score) for metric, score in row["scores"].items()}
    members = {name: from_row(one) for name, one in row.get("members", {}).items()}
    return Verdict(row["judge"], scores, members)
