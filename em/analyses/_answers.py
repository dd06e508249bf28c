"""Judged answers as the few numbers that rates are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from em.evaluation.stored import Evaluated
from em.measurements.behaviour import label
from em.proportions import wilson
from em.stats import Estimate, Floats, Resampling


def condition_rows(done: Evaluated) -> list[dict[str, Any]]:
    """One row for each answer: its question and its label."""
    return [
        {"question": one.answer.question, "label": label(one.verdict, done.thresholds)} for one in done.judged
    ]


@dataclass(frozen=True)
class Rows:
    """Counts by question of one condition."""

    questions: dict[str, tuple[int, int]]  # question -> answers, misaligned
    unscored: int

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> "Rows":
        """Count rows of `condition_rows`."""
        counted: dict[str, tuple[int, int]] = {}
        for row in rows:
            answers, bad = counted.get(row["question"], (0, 0))
            counted[row["question"]] = (answers + 1, bad + (row["label"] == "misaligned"))
        return cls(counted, sum(row["label"] == "unscored" for row in rows))

    @property
    def answers(self) -> int:
        return sum(answers for answers, _ in self.questions.values())

    @property
    def misaligned(self) -> int:
        return sum(bad for _, bad in self.questions.values())

    @property
    def counts(self) -> tuple[int, int]:
        """Misaligned answers, and all."""
        return self.misaligned, self.answers


def rate_draws(rows: Rows, questions: list[str], draws: Resampling) -> Floats:
    """Share of misaligned answers in each resample of questions, shape (R,); unscored stay in it.

    Args:
        questions: the clusters of `draws`, in its order.
    """
    counted = [rows.questions.get(name, (0, 0)) for name in questions]
    answers_N, bad_N = (np.array([one[at] for one in counted], dtype=float) for at in (0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return draws.means(bad_N, answers_N)


def spread(rows: Rows, found: Estimate) -> Estimate:
    """Wilson's interval of a share of all answers where it is 0 or 1, which resampling shows no spread of."""
    if found.value in (0.0, 1.0) and found.low is not None:
        return wilson(*rows.counts)
    return found
