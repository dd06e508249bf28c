"""Rates of arms that were trained with several seeds, combined by question and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from em.errors import MeasurementError
from em.measurements._behaviour_groups import Draws, Group
from em.measurements._behaviour_notes import seed_notes
from em.measurements._behaviour_pairs import checked_pairs
from em.measurements._behaviour_points import Judged, Point, Thresholds, points_of
from em.proportions import CrossedResampling, wilson
from em.stats import NOTHING, Estimate

At = tuple[str, str, str]  # judge, method, set


@dataclass(frozen=True)
class _Arm:
    """The answers of one arm to one set by one judge and method, by seed."""

    seeds: dict[int, Group]

    @property
    def questions(self) -> list[str]:
        return sorted({question for group in self.seeds.values() for question in group.questions})

    @property
    def asked(self) -> bool:
        return any(group.asked for group in self.seeds.values())

    def cells(self, questions: Sequence[str]) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
        """Every (question, seed) in order, misaligned answers and answers of each; 0 where there are none."""
        index = {name: at for at, name in enumerate(questions)}
        hits, counts = (np.zeros((len(self.seeds), len(questions))) for _ in range(2))
        for row, seed in enumerate(sorted(self.seeds)):
            group = self.seeds[seed]
            shared = [name for name in group.questions if name in index]
            to, source = [index[name] for name in shared], group.at(shared)
            hits[row, to], counts[row, to] = group.misaligned_Q[source], group.counts_Q[source]
        names = [(question, str(seed)) for seed in sorted(self.seeds) for question in questions]
        return names, hits.ravel(), counts.ravel()

    def resampled(
        self, questions: Sequence[str], resamples: int, seed: int, purpose: str = ""
    ) -> tuple[CrossedResampling, np.ndarray]:
        """The resampling of the cells and the rate in each resample."""
        names, hits_N, counts_N = self.cells(questions)
        asked, seeds = zip(*names, strict=True)
        crossed = CrossedResampling(asked, seeds, resamples, seed, purpose)
        return crossed, crossed.means(hits_N, counts_N)


def combined_seeds(
    judged_by_seed: Mapping[str, Mapping[int, Sequence[Judged]]],
    thresholds: Thresholds | None = None,
    resamples: int = 2000,
    seed: int = 0,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Rates of arms over training seeds, for other questions and other seeds like these.

    Questions and seeds are resampled at once (`em.proportions.CrossedResampling`). A difference is paired
    by question, and by seed where both arms have the same seeds.

    Args:
        judged_by_seed: arm -> training seed -> judged answers of that one model. The reference has no
            training seed: give it as one.
        pairs: which arms are compared, first minus second; by default every arm with `reference` and every
            pair of others.

    Returns:
        arms (name -> seeds), rates (one row for each judge, method, arm and set, with `per_seed`),
        differences and notes, as plain data.

    Raises:
        MeasurementError: nothing to count, a seed without answers or with those of several models, or the
            same answers given as two seeds.
    """
    thresholds = thresholds or Thresholds()
    _check(judged_by_seed)
    runs = [(arm, number) for arm, by_seed in judged_by_seed.items() for number in by_seed]
    parts = points_of([judged_by_seed[arm][number] for arm, number in runs], thresholds)
    arms = _arms(runs, parts)
    draws = Draws(resamples, seed)
    rates = [
        {**_about(at), "arm": name, **_rate(arm, draws, resamples, seed)}
        for at, by_name in arms.items()
        for name, arm in by_name.items()
    ]
    differences = [
        {**_about(at), "a": a, "b": b, **_difference(by_name[a], by_name[b], (a, b), resamples, seed)}
        for at, by_name in arms.items()
        for a, b in checked_pairs(pairs, list(judged_by_seed))
        if a in by_name and b in by_name
    ]
    seeds = {name: sorted(by_seed) for name, by_seed in judged_by_seed.items()}
    return {
        "thresholds": dict(vars(thresholds)),
        "arms": seeds,
        "rates": rates,
        "differences": differences,
        "notes": seed_notes(seeds, rates, differences),
    }


def _check(judged_by_seed: Mapping[str, Mapping[int, Sequence[Judged]]]) -> None:
    for arm, by_seed in judged_by_seed.items():
        if not by_seed:
            raise MeasurementError(f"{arm}: there is no seed; leave the arm out or give its answers")
        seen: dict[frozenset[str], int] = {}
        for number, judged in by_seed.items():
            where, names = f"{arm}, seed {number}", {one.answer.model for one in judged}
            if not judged:
                raise MeasurementError(f"{where}: there are no judged answers; leave the seed out")
            if len(names) > 1:
                raise MeasurementError(
                    f"{where}: answers of {len(names)} models ({', '.join(sorted(names))}); give each model "
                    "as an arm of its own"
                )
            keys = frozenset(one.answer.key for one in judged)
            if keys in seen:
                raise MeasurementError(f"{where}: the same answers as of seed {seen[keys]}; give them once")
            seen[keys] = number


def _arms(runs: Sequence[tuple[str, int]], parts: Sequence[Sequence[Point]]) -> dict[At, dict[str, _Arm]]:
    listed: dict[At, dict[str, dict[int, list[Point]]]] = {}
    for (arm, number), points in zip(runs, parts, strict=True):
        for point in points:
            at = (point.judge, point.method, point.answer.questions)
            listed.setdefault(at, {}).setdefault(arm, {}).setdefault(number, []).append(point)
    return {
        at: {
            arm: _Arm({number: Group(points) for number, points in by_seed.items()})
            for arm, by_seed in by_arm.items()
        }
        for at, by_arm in listed.items()
    }


def _about(at: At) -> dict[str, str]:
    return dict(zip(("judge", "method", "set"), at, strict=True))


def _clipped(found: Estimate, least: float) -> Estimate:
    """A t-interval may leave the range that a share or a difference of shares has."""
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(least, found.low), min(1.0, found.high))


def _rate(arm: _Arm, draws: Draws, resamples: int, seed: int) -> dict[str, Any]:
    questions = arm.questions
    _, hits_N, counts_N = arm.cells(questions)
    found = NOTHING
    if arm.asked:
        crossed, values_R = arm.resampled(questions, resamples, seed)
        found = _clipped(crossed.estimate(values_R), 0.0)
        if len(questions) == 1 and len(arm.seeds) == 1:
            found = Estimate(found.value, None, None)
    per_seed = [_seed_row(number, arm.seeds[number], draws) for number in sorted(arm.seeds)]
    rates = [row["rate"] for row in per_seed if row["rate"] is not None]
    return {
        "seeds": len(arm.seeds),
        "questions": len(questions),
        "answers": int(counts_N.sum()),
        "misaligned": int(hits_N.sum()),
        "rate": found.value,
        "low": found.low,
        "high": found.high,
        "sd_of_seeds": float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
        "empty_cells": int((counts_N == 0).sum()),
        "unscored": sum(p.label == "unscored" for group in arm.seeds.values() for p in group.points),
        "per_seed": per_seed,
    }


def _seed_row(number: int, group: Group, draws: Draws) -> dict[str, Any]:
    found = draws.mean(group.questions, group.misaligned_Q, group.counts_Q) if group.asked else NOTHING
    answers, misaligned = len(group.points), int(group.misaligned_N.sum())
    interval = wilson(misaligned, answers)
    return {
        "seed": number,
        "questions": len(group.questions),
        "answers": answers,
        "misaligned": misaligned,
        "rate": found.value,
        "low": found.low,
        "high": found.high,
        "wilson": [interval.low, interval.high] if group.asked else None,
    }


def _difference(a: _Arm, b: _Arm, names: tuple[str, str], resamples: int, seed: int) -> dict[str, Any]:
    common = [name for name in a.questions if name in set(b.questions)]
    paired, found = set(a.seeds) == set(b.seeds), NOTHING
    if common and a.asked and b.asked:
        purposes = ("", "") if paired else tuple(f" of {name}" for name in names)
        (crossed, first_R), (other, second_R) = (
            arm.resampled(common, resamples, seed, purpose)
            for arm, purpose in zip((a, b), purposes, strict=True)
        )
        found = _clipped(crossed.estimate(first_R - second_R, others=() if paired else (other,)), -1.0)
        if len(common) == 1 and len(a.seeds) == len(b.seeds) == 1:
            found = Estimate(found.value, None, None)
    left = sorted(set(a.questions) ^ set(b.questions))
    return {
        **found.as_dict(),
        "questions": len(common),
        "left_out": len(left),
        "left_out_questions": left,
        "seeds_a": len(a.seeds),
        "seeds_b": len(b.seeds),
        "paired_by_seed": paired,
    }
