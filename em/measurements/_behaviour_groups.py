"""Judged answers that may be counted together, and resampled questions that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from em.judges.base import Metric
from em.measurements._behaviour_points import Point
from em.stats import NOTHING, Estimate, Floats, Resampling


@dataclass(frozen=True)
class Key:
    """What may be counted together; `method` stands beside the judge because methods are never pooled."""

    judge: str
    method: str
    model: str
    set: str

    def row(self) -> dict[str, str]:
        return dict(vars(self))


class Group:
    """Answers of one model to one set of questions, seen by one judge with one method."""

    def __init__(self, points: Sequence[Point]):
        self.points = list(points)
        self.questions: tuple[str, ...] = tuple(sorted({point.answer.question for point in points}))
        index = {name: number for number, name in enumerate(self.questions)}
        self.member_N = np.array([index[point.answer.question] for point in points])
        self.misaligned_N = np.array([point.label == "misaligned" for point in points], dtype=float)
        self.counts_Q = self.sums(np.ones(len(self.points)))
        self.misaligned_Q = self.sums(self.misaligned_N)

    @property
    def asked(self) -> bool:
        """Whether there is a rate at all."""
        return any(point.asked for point in self.points)

    def sums(self, values_N: Floats) -> Floats:
        """Sums over the answers to each question, in the order of `questions`."""
        return np.bincount(self.member_N, weights=values_N, minlength=len(self.questions)).astype(float)

    def values(self, metric: Metric) -> Floats:
        """A metric of every answer; NaN where there is no number."""
        found = [point.verdict.value(metric) for point in self.points]
        return np.array([np.nan if value is None else value for value in found], dtype=float)

    def at(self, questions: Sequence[str]) -> list[int]:
        """Where questions stand in `questions`."""
        index = {name: number for number, name in enumerate(self.questions)}
        return [index[name] for name in questions]

    def by_question(self) -> dict[str, "Group"]:
        """A group for each question."""
        parts: dict[str, list[Point]] = {name: [] for name in self.questions}
        for point in self.points:
            parts[point.answer.question].append(point)
        return {name: Group(part) for name, part in parts.items()}


class Draws:
    """Resampled questions: equal questions get equal draws, whoever answered and whoever judged."""

    def __init__(self, resamples: int, seed: int):
        self._resamples, self._seed = resamples, seed
        self._made: dict[tuple[str, ...], Resampling] = {}

    def over(self, questions: tuple[str, ...]) -> Resampling:
        if questions not in self._made:
            self._made[questions] = Resampling(questions, self._resamples, self._seed)
        return self._made[questions]

    def mean(self, questions: tuple[str, ...], sums_Q: Floats, counts_Q: Floats) -> Estimate:
        """Σ sums / Σ counts; without an interval for a single question, of whose spread nothing is known."""
        draws = self.over(questions)
        return spread_known(draws, draws.mean(sums_Q, counts_Q)) if counts_Q.sum() else NOTHING


def spread_known(draws: Resampling, found: Estimate) -> Estimate:
    """The estimate, without an interval where there is a single question."""
    return found if draws.count > 1 else Estimate(found.value, None, None)


def grouped(points: Sequence[Point]) -> dict[Key, Group]:
    """Groups by judge, method, model and set, in the order in which each first appears."""
    judges = list(dict.fromkeys((point.judge, point.method) for point in points))
    names, sets = models(points), list(dict.fromkeys(point.answer.questions for point in points))
    parts: dict[Key, list[Point]] = {
        Key(judge, method, model, one): [] for judge, method in judges for one in sets for model in names
    }
    for point in points:
        parts[Key(point.judge, point.method, point.answer.model, point.answer.questions)].append(point)
    return {key: Group(part) for key, part in parts.items() if part}


def models(points: Sequence[Point]) -> list[str]:
    """Models by first appearance, `reference` before all others."""
    names = list(dict.fromkeys(point.answer.model for point in points))
    return sorted(names, key=lambda name: name != "reference")
