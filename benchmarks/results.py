"""Stored results of rows, and what follows from them: ratios, medians, agreement of losses, verdicts."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.rows import ROWS, Row, Target

TOLERANCE = 1e-4  # of losses in fp32; relative for those above 1
Side = dict[str, Any]


@dataclass
class Result:
    """One run of one row, as its file holds it.

    Args:
        header: row, settings, command, machine before.
        alternations: by repeat, what each side returned.
        problems: sides that failed or were left out, in words.
        after: the machine after the run.
    """

    header: dict[str, Any]
    alternations: list[dict[str, Side]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    after: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> Row:
        return next(row for row in ROWS if row.name == self.header["row"])

    @property
    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = self.header["settings"]
        return found

    def of(self, side: str) -> list[Side]:
        """What a side returned, in order."""
        return [one[side] for one in self.alternations if side in one]


@dataclass(frozen=True)
class Summary:
    """Median and range over the alternations."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary | None":
        return cls(statistics.median(values), min(values), max(values)) if values else None


def value_of(target: Target, alternation: dict[str, Side]) -> float | None:
    """What a target is about in one alternation; None where a side of it is missing."""
    ours, peer = alternation.get("ours"), alternation.get("peer")
    if ours is None or (target.measure in ("speed", "memory") and peer is None):
        return None
    if target.measure == "speed":
        assert peer is not None
        return float(peer["seconds"] / ours["seconds"])
    if target.measure == "memory":
        assert peer is not None
        return float(ours["peak_mb"] / peer["peak_mb"])
    return float(ours[target.measure])


def summary(result: Result, target: Target) -> Summary | None:
    values = [value_of(target, alternation) for alternation in result.alternations]
    return Summary.of([value for value in values if value is not None])


def median(result: Result, side: str, key: str) -> float | None:
    """The median of one number of a side."""
    values = [float(one[key]) for one in result.of(side) if key in one]
    return statistics.median(values) if values else None


def disagreement(result: Result) -> str | None:
    """How the losses of the two sides differ by more than is allowed; None: they agree, or there is no peer.

    In other precisions than fp32 rounding alone differs by more, so nothing is held against them.
    """
    if result.settings["dtype"] != "float32":
        return None
    for number, alternation in enumerate(result.alternations):
        if "ours" in alternation and "peer" in alternation:
            ours, peer = (alternation[side].get("losses", {}) for side in ("ours", "peer"))
            found = _difference(ours, peer)
            if found is not None:
                return f"alternation {number + 1}: {found}"
    return None


def _difference(ours: dict[str, list[float]], peer: dict[str, list[float]]) -> str | None:
    if ours.keys() != peer.keys():
        return f"losses {sorted(ours)} against {sorted(peer)}"
    for name in ours:
        if len(ours[name]) != len(peer[name]):
            return f"{len(ours[name])} losses {name} against {len(peer[name])}"
        for step, (one, other) in enumerate(zip(ours[name], peer[name], strict=True)):
            if not math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                return f"{name} loss {step}: {one:.6f} against {other:.6f}"
    return None


def largest_difference(result: Result) -> float | None:
    """Over all losses of all alternations, absolute; None without a peer that reports losses."""
    pairs = [
        abs(one - other)
        for alternation in result.alternations
        if "ours" in alternation and "peer" in alternation
        for name, values in alternation["ours"].get("losses", {}).items()
        for one, other in zip(values, alternation["peer"].get("losses", {}).get(name, []), strict=False)
    ]
    return max(pairs) if pairs else None


def verdict(result: Result, target: Target) -> str:
    """In a word, or why there is none."""
    differs = disagreement(result)
    if differs is not None:
        return f"FAILED: the losses differ: {differs}"
    found = summary(result, target)
    if found is None:
        return f"not run: {result.problems[0]}" if result.problems else "not run"
    reached = target.reached(found.median)
    return "" if reached is None else "reached" if reached else "not reached"


def failed(results: Iterable[Result]) -> bool:
    """Whether a side failed or losses differ; a target that is not reached is no failure."""
    return any(disagreement(result) or result.header.get("failed") for result in results)


def read_result(path: Path) -> Result:
    """One file of a row.

    Raises:
        BenchmarkError: it is damaged or of a row that does not exist.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        result = Result(next(line for line in lines if line["kind"] == "header"))
        for line in lines:
            if line["kind"] == "side" and "result" in line:
                while len(result.alternations) <= line["repeat"]:
                    result.alternations.append({})
                result.alternations[line["repeat"]][line["side"]] = line["result"]
            elif line["kind"] == "side":
                result.header["failed"] = True
                result.problems.append(f"{line['side']}: {line['error']}")
            elif line["kind"] == "skipped":
                result.problems.append(line["reason"])
            elif line["kind"] == "after":
                result.after = line["machine"]
        _ = result.row
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise BenchmarkError(f"{path}: not a result of this benchmark ({error!r}); remove it") from error
    return result


def read_results(folder: Path) -> list[Result]:
    """The latest result of every row, in the order of the table.

    Raises:
        BenchmarkError: there is none.
    """
    paths = sorted(folder.glob("*.jsonl"))
    latest: dict[str, Result] = {}
    for result in sorted(map(read_result, paths), key=lambda one: float(one.header["started"])):
        latest[result.header["row"]] = result
    if not latest:
        raise BenchmarkError(f"{folder}: no stored results; run `make bench` first")
    return [latest[row.name] for row in ROWS if row.name in latest]
