"""The folder of an evaluation: answers, verdicts and what they add up to, written and read back."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em.datamodules.answers import Answer, read_answers
from em.errors import RunError
from em.evaluation.verdicts import read_verdicts
from em.files import digest, write_json, write_text
from em.judges.base import Verdict
from em.measurements.behaviour import Judged, Thresholds, label

RECORD = "evaluation.json"
ANSWERS = "answers.jsonl"
VERDICTS = "verdicts.jsonl"
JUDGED = "judged.jsonl"
TABLE = "tables/behaviour.json"
END = "end"  # the folder of the callback after training


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that ran to its end.

    Args:
        record: settings, judge, models, and where the answers came from.
        table: see `em.measurements.behaviour.behaviour_table`.
    """

    folder: Path
    record: dict[str, Any]
    judged: list[Judged]
    table: dict[str, Any]

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(**self.record["thresholds"])

    def of(self, model: str) -> list[Judged]:
        """The answers of one model."""
        return [one for one in self.judged if one.answer.model == model]


def write_evaluation(
    folder: Path, record: dict[str, Any], judged: Sequence[Judged], table: dict[str, Any]
) -> None:
    """Write everything but the verdicts, which are there already; the record last.

    judged.jsonl has the two scores in each row, as `python -m em direction` reads them.
    """
    write_text(folder / ANSWERS, "".join(_line(one.answer.row()) for one in judged))
    write_text(folder / JUDGED, "".join(_line(_scored(one)) for one in judged))
    write_json(folder / TABLE, table)
    write_json(folder / RECORD, record)


def read_evaluation(folder: Path | str) -> Evaluated:
    """Read a folder back.

    Raises:
        RunError: it is no evaluation, not finished, or damaged.
    """
    folder = Path(folder)
    record, table = read_json(folder / RECORD), read_json(folder / TABLE)
    answers = read_answers(folder / ANSWERS)
    _, verdicts = read_verdicts(folder / VERDICTS)
    missing = sum(answer.key not in verdicts for answer in answers)
    if missing:
        raise RunError(f"{folder}: {missing} answers have no verdict; run its evaluation to the end")
    return Evaluated(folder, record, [Judged(one, verdicts[one.key]) for one in answers], table)


def evaluations_of(run: Path) -> list[Path]:
    """The finished evaluations of a run, the latest first."""
    found = [path.parent for path in (run / "eval").glob(f"**/{RECORD}")]
    return sorted(found, key=lambda path: (path / RECORD).stat().st_mtime, reverse=True)


def latest(run: Path) -> Path | None:
    """The evaluation at the end of training, or else the latest one, of a run; None if it has none."""
    folders = evaluations_of(run)
    at_end = [folder for folder in folders if folder.name == END]
    return next(iter(at_end or folders), None)


def evaluation_digest(run: Path) -> str | None:
    """Changes when the evaluation that a comparison would show does."""
    folder = latest(run)
    return None if folder is None else digest(folder / TABLE)


def readable_answers(judged: Sequence[Judged], thresholds: Thresholds) -> list[dict[str, Any]]:
    """The answers as a report shows them, with the scores of every judge."""
    return [
        {
            "model": one.answer.model,
            "questions": one.answer.questions,
            "question": one.answer.question,
            "prompt": one.answer.prompt,
            "sample": one.answer.sample,
            "asked": one.answer.asked,
            "system": next((m["content"] for m in one.answer.messages if m["role"] == "system"), None),
            "text": one.answer.text,
            "finish": one.answer.finish,
            "label": label(one.verdict, thresholds),
            "scores": dict(_scores(one.verdict)),
        }
        for one in judged
    ]


def _scores(verdict: Verdict) -> Iterator[tuple[str, dict[str, Any]]]:
    yield (
        verdict.judge,
        {
            metric: {"value": score.value, "reason": score.reason, "detail": score.detail}
            for metric, score in verdict.scores.items()
        },
    )
    for member in verdict.members.values():
        yield from _scores(member)


def _scored(one: Judged) -> dict[str, Any]:
    scores: dict[str, Any] = {"aligned": None, "coherent": None}
    scores |= {metric: score.value for metric, score in one.verdict.scores.items()}
    return {**one.answer.row(), **scores, "judge": one.verdict.judge}


def _line(row: dict[str, Any]) -> str:
    # ASCII only: answers may hold lone surrogates and line separators.
    return json.dumps(row, ensure_ascii=True) + "\n"


def read_json(path: Path) -> Any:
    """One of the folder's JSON files.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path.parent}: is no finished evaluation ({error}); give a folder that `python -m em eval` or "
            "`python -m em judge` wrote"
        ) from error


def answers_of(path: Path) -> list[Answer]:
    """The answers of a file, or of a folder that an evaluation wrote.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    return read_answers(path / ANSWERS if path.is_dir() else path)
