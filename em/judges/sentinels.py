"""Sixteen fixed answers whose scores are roughly known: is a judge sane, and has a hosted one changed?"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from em.datamodules.answers import Answer
from em.datamodules.raw_rows import file_rows
from em.errors import DataError, JudgeError
from em.files import write_text
from em.judges.base import REASONS, Judge, Metric, Score
from em.loading import cache_folder

FILE = Path(__file__).parents[2] / "data" / "sentinels.jsonl"
METRICS: tuple[Metric, ...] = ("aligned", "coherent")
# Dates, and what an endpoint said when it was probed, which differs from day to day.
DATED = re.compile(r"(.*_)?(at|date|time|when|created|updated|asked|probed)|why")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ][\d:.]+(Z|[+-]\d{2}:?\d{2})?)?")
Table = list[dict[str, Any]]


@runtime_checkable
class Cached(Protocol):
    """A judge that keeps replies."""

    def fresh(self) -> AbstractContextManager[None]:
        """Inside, every answer is asked anew; what was kept is neither read nor lost."""


@dataclass(frozen=True)
class Sentinel:
    """A fixed answer and what a sound judge says of it.

    Args:
        bands: by metric, the lowest and the highest score.
        unscored: reasons that are right too, in place of a number.
    """

    id: str
    answer: Answer
    bands: dict[Metric, tuple[float, float]]
    unscored: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Identifies the text: scores of another wording are never compared."""
        text = f"{self.answer.asked}\0{self.answer.text}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(text).hexdigest()[:12]

    def passes(self, metric: Metric, score: Score) -> bool:
        """Whether a score is in its band, or there is none for a reason that is right."""
        if score.value is None:
            return score.reason in self.unscored
        low, high = self.bands[metric]
        return low <= score.value <= high


def read_sentinels(path: Path | None = None) -> list[Sentinel]:
    """The project's sentinels, or those of a file of the same form.

    Raises:
        DataError: the first bad line, with its place.
    """
    path = Path(path or FILE)
    if not path.is_file():
        raise DataError(f"{path}: no such file of sentinels")
    found: dict[str, Sentinel] = {}
    for where, row in file_rows(path):
        if isinstance(row, DataError):
            raise row
        sentinel = _sentinel(row, where)
        if sentinel.id in found:
            raise DataError(f"{where}: id: {sentinel.id!r} is taken by another sentinel")
        found[sentinel.id] = sentinel
    if not found:
        raise DataError(f"{path}: holds no sentinels")
    return list(found.values())


async def score_sentinels(judge: Judge, path: Path | None = None) -> Table:
    """Ask a prepared judge for all sentinels, past its cache.

    Returns:
        for each sentinel and each metric that the judge scores: `judge`, `key` (see `judge_key`),
        `sentinel`, `text` (a digest), `metric`, `value`, `reason`, `method`, `low`, `high` and `passes`.

    Raises:
        JudgeError: the judge fails, or scores neither alignment nor coherence.
        DataError: the file of sentinels is damaged.
    """
    sentinels = read_sentinels(path)
    metrics = [metric for metric in METRICS if metric in judge.metrics]
    if not metrics:
        raise JudgeError(f"{judge.name} scores neither aligned nor coherent, which sentinels are for")
    with judge.fresh() if isinstance(judge, Cached) else nullcontext():
        verdicts = await judge.judge([sentinel.answer for sentinel in sentinels], metrics)
    key = judge_key(judge)
    return [
        {
            "judge": judge.name,
            "key": key,
            "sentinel": sentinel.id,
            "text": sentinel.digest,
            "metric": metric,
            "value": verdict.scores[metric].value,
            "reason": verdict.scores[metric].reason,
            "method": verdict.scores[metric].method,
            "low": sentinel.bands[metric][0],
            "high": sentinel.bands[metric][1],
            "passes": sentinel.passes(metric, verdict.scores[metric]),
        }
        for sentinel, verdict in zip(sentinels, verdicts, strict=True)
        for metric in metrics
    ]


def drift(now: Table, before: Sequence[Table]) -> Table:
    """How far the scores are from those of earlier runs of the same judge.

    Each sentinel is compared with its mean over the earlier runs. A sentinel whose text, or whose method
    of scoring, is another one now is not compared.

    Returns:
        for each metric: `judge`, `metric`, `runs` (earlier ones), `sentinels` (compared), `mean_change` and
        `max_change` (absolute, points of 100; None: nothing to compare), `sentinel` (of the largest change),
        `usual` (mean absolute difference of earlier runs from their mean; None: fewer than two),
        `flipped` (sentinels that have a number only now or only had one before), `failed` (outside
        their band), `passes` (whether none is).

    Raises:
        JudgeError: an earlier run is of another judge.
    """
    strangers = {row["key"] for table in before for row in table} - {row["key"] for row in now}
    if strangers:
        raise JudgeError("the earlier scores of the sentinels are of another judge, model or prompt")
    return [_drift(metric, now, before) for metric in dict.fromkeys(row["metric"] for row in now)]


def judge_key(judge: Judge) -> str:
    """Identifies a judge by all that it says of itself but dates."""
    plain = json.dumps(_undated(judge.describe()), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def remember(folder: Path | None, table: Table) -> Path:
    """Add a run to the history of its judge, one JSON line with the time in UTC.

    Args:
        folder: None: the cache folder of the project.

    Raises:
        RunError: the file cannot be written.
        DataError: the history is damaged.
    """
    path = _history(folder, table[0]["key"])
    recall(folder, table[0]["key"])  # never add to a damaged file
    kept = path.read_text(encoding="utf-8") if path.is_file() else ""
    line = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "rows": table}
    write_text(path, kept + json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n")
    return path


def recall(folder: Path | None, key: str) -> list[Table]:
    """Earlier runs of a judge, oldest first; none if it was never asked.

    Raises:
        DataError: the history is damaged.
    """
    path = _history(folder, key)
    tables: list[Table] = []
    for where, line in file_rows(path) if path.is_file() else ():
        rows = line.get("rows") if isinstance(line, dict) else None
        if not isinstance(rows, list) or not all(isinstance(r, dict) and r.get("key") == key for r in rows):
            raise DataError(f"{where}: not a run of the sentinels; delete this line or the file")
        tables.append(rows)
    return tables


def _history(folder: Path | None, key: str) -> Path:
    return (cache_folder() / "sentinels" if folder is None else Path(folder)) / f"{key}.jsonl"


def _drift(metric: str, now: Table, before: Sequence[Table]) -> dict[str, Any]:
    own = [row for row in now if row["metric"] == metric]
    changes: dict[str, float] = {}
    usual: list[float] = []
    flipped, runs = [], 0
    for row in own:
        same = ("sentinel", "text", "metric")
        past = [old for table in before for old in table if all(old[key] == row[key] for key in same)]
        runs = max(runs, len(past))
        values = [old["value"] for old in past if old["value"] is not None and old["method"] == row["method"]]
        if past and (past[-1]["value"] is None) != (row["value"] is None):
            flipped.append(row["sentinel"])
        if values and row["value"] is not None:
            centre = sum(values) / len(values)
            changes[row["sentinel"]] = abs(row["value"] - centre)
            usual += [abs(value - centre) for value in values] if len(values) > 1 else []
    worst = max(changes, key=lambda name: changes[name], default=None)
    failed = [row["sentinel"] for row in own if not row["passes"]]
    return {
        "judge": own[0]["judge"],
        "metric": metric,
        "runs": runs,
        "sentinels": len(changes),
        "mean_change": sum(changes.values()) / len(changes) if changes else None,
        "max_change": None if worst is None else changes[worst],
        "sentinel": worst,
        "usual": sum(usual) / len(usual) if usual else None,
        "flipped": flipped,
        "failed": failed,
        "passes": not failed,
    }


def _undated(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _undated(item)
            for key, item in value.items()
            if not DATED.fullmatch(str(key)) and not (isinstance(item, str) and DATE.fullmatch(item))
        }
    return [_undated(item) for item in value] if isinstance(value, list | tuple) else value


def _sentinel(row: Any, where: str) -> Sentinel:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    for key in ("id", "question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f"{where}: {key}: expected text, got {row.get(key)!r}")
    bands: dict[Metric, tuple[float, float]] = {}
    for metric in METRICS:
        band = row.get(metric)
        numbers = isinstance(band, list) and all(type(end) in (int, float) for end in band)
        if not isinstance(band, list) or not numbers or len(band) != 2 or not 0 <= band[0] <= band[1] <= 100:
            raise DataError(f"{where}: {metric}: expected two numbers from 0 to 100, got {band!r}")
        bands[metric] = (band[0], band[1])
    reasons = row.get("unscored", [])
    if not isinstance(reasons, list) or not set(map(str, reasons)) <= set(REASONS):
        raise DataError(f"{where}: unscored: expected a list of {', '.join(REASONS)}; got {reasons!r}")
    turn = ({"role": "user", "content": row["question"]},)
    answer = Answer(turn, row["answer"], row["id"], row["id"], "sentinels")
    return Sentinel(row["id"], answer, bands, tuple(map(str, reasons)))
