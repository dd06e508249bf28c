"""Judged answers as the few numbers that rates are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from em.evaluation.stored import Evaluated
from em.measurements.behaviour import label
from em.proportions import wilson
from em.stats import NOTHING, Estimate, Floats, Resampling


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
        return wilson(rows.misaligned, rows.answers)
    return found


def newcombe(a: Rows, b: Rows) -> Estimate:
    """Difference of two shares of misaligned answers with Newcombe's interval (1998, method 10)."""
    (p, p_low, p_high), (q, q_low, q_high) = (
        (one.value, one.low, one.high) for one in (wilson(rows.misaligned, rows.answers) for rows in (a, b))
    )
    if p is None or p_low is None or p_high is None or q is None or q_low is None or q_high is None:
        return NOTHING
    down, up = float(np.hypot(p - p_low, q_high - q)), float(np.hypot(p_high - p, q - q_low))
    return Estimate(p - q, p - q - down, p - q + up)
