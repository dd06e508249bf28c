"""How well the projection onto a direction tells misaligned from aligned answers."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from em.errors import MeasurementError
from em.measurements._behaviour_groups import Draws, Group, grouped, spread_known
from em.measurements._behaviour_points import Judged, Thresholds, points_of
from em.stats import NOTHING, Estimate, Floats, Resampling


def projection_auroc(
    judged: Sequence[Judged],
    projections: Mapping[str, float],
    thresholds: Thresholds | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """AUROC of projections, misaligned against aligned answers of one model to one set.

    Models are not pooled: most misaligned answers come from one and most aligned ones from another, so that
    any trace of the model would look like one of misalignment.

    Args:
        projections: `Answer.key` -> projection, higher for more misaligned.
        resamples, seed: of whole questions.

    Returns:
        A row for each judge, method, model and set: value, low, high, the sizes of both groups, answers of
        them without a projection, and `reason`, which is None unless there is no value.

    Raises:
        MeasurementError: nothing to count, or a projection that is not a finite number.
    """
    for key, value in projections.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise MeasurementError(
                f"the projection of answer {key} is {value!r}, not a finite number; use "
                "backbone.dtype=float32, or look for a broken direction"
            )
    [points] = points_of([judged], thresholds or Thresholds())
    draws = Draws(resamples, seed)
    return [{**key.row(), **_row(group, projections, draws)} for key, group in grouped(points).items()]


def _row(group: Group, projections: Mapping[str, float], draws: Draws) -> dict[str, Any]:
    chosen = {
        name: [point.answer for point in group.points if point.label == name]
        for name in ("misaligned", "aligned")
    }
    known = {name: [one for one in some if one.key in projections] for name, some in chosen.items()}
    found, reason = NOTHING, None
    empty = [name for name, some in known.items() if not some]
    if empty:
        name = empty[0]
        reason = f"no {name} answer" + (" with a projection" if chosen[name] else "")
    else:
        questions = tuple(sorted({one.question for some in known.values() for one in some}))
        values = {name: [projections[one.key] for one in some] for name, some in known.items()}
        members = {name: [questions.index(one.question) for one in some] for name, some in known.items()}
        resampling = draws.over(questions)
        wins_QQ = _wins(
            values["misaligned"], members["misaligned"], values["aligned"], members["aligned"], len(questions)
        )
        sizes = [np.bincount(members[name], minlength=len(questions)).astype(float) for name in known]
        found = spread_known(resampling, _estimate(resampling, wins_QQ, sizes[0], sizes[1]))
    return {
        **found.as_dict(),
        "misaligned": len(known["misaligned"]),
        "aligned": len(known["aligned"]),
        "without_projection": sum(len(chosen[name]) - len(known[name]) for name in chosen),
        "reason": reason,
    }


def _wins(
    positive: Sequence[float],
    of_positive: Sequence[int],
    negative: Sequence[float],
    of_negative: Sequence[int],
    count: int,
) -> Floats:
    """How often an answer to one question beats one to another, ties counted half; shape (Q, Q)."""
    positive_N, negative_M, of_M = np.array(positive), np.array(negative), np.array(of_negative)
    columns = []
    for question in range(count):
        others = np.sort(negative_M[of_M == question])
        below, up_to = (np.searchsorted(others, positive_N, side) for side in ("left", "right"))
        columns.append(np.bincount(of_positive, weights=(below + up_to) / 2, minlength=count))
    return np.stack(columns, axis=1).astype(float)


def _estimate(resampling: Resampling, wins_QQ: Floats, positive_Q: Floats, negative_Q: Floats) -> Estimate:
    """`em.stats.auroc` in each resample of questions; none where a group is not drawn at all."""
    weights_RQ = resampling.weights_RC
    wins_R = ((weights_RQ @ wins_QQ) * weights_RQ).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return resampling.estimate(wins_R / ((weights_RQ @ positive_Q) * (weights_RQ @ negative_Q)))
