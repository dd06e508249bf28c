"""Differences of rates between models on the same questions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from em.errors import MeasurementError
from em.measurements._behaviour_groups import Draws, Group, Key, spread_known
from em.proportions import minimum_detectable_difference
from em.stats import NOTHING, Floats

Pair = tuple[str, str]


def usual_pairs(names: Sequence[str]) -> list[Pair]:
    """Every model minus the reference, then every pair of others."""
    others = [name for name in names if name != "reference"]
    against = [(name, "reference") for name in others] if "reference" in names else []
    return against + [(a, b) for at, a in enumerate(others) for b in others[at + 1 :]]


def checked_pairs(pairs: Sequence[Pair] | None, names: Sequence[str]) -> list[Pair]:
    """The pairs that are wanted.

    Raises:
        MeasurementError: a pair names a model that has no answers, or one model twice.
    """
    if pairs is None:
        return usual_pairs(names)
    for pair in pairs:
        unknown = [name for name in pair if name not in names]
        if unknown:
            raise MeasurementError(
                f"pairs: there are no answers of {unknown[0]}; there are those of {', '.join(names)}"
            )
        if pair[0] == pair[1]:
            raise MeasurementError(f"pairs: {pair[0]} is compared with itself; name two models")
    return [(a, b) for a, b in pairs]


def difference_rows(groups: Mapping[Key, Group], pairs: Sequence[Pair], draws: Draws) -> list[dict[str, Any]]:
    """A row for each judge, method, set and pair in which both models have answers to the set."""
    rows = []
    for judge, method, one in dict.fromkeys((key.judge, key.method, key.set) for key in groups):
        for a, b in pairs:
            first, second = (groups.get(Key(judge, method, name, one)) for name in (a, b))
            if first is not None and second is not None:
                about = {"judge": judge, "method": method, "set": one, "a": a, "b": b}
                rows.append({**about, **_difference(first, second, draws)})
    return rows


def _difference(a: Group, b: Group, draws: Draws) -> dict[str, Any]:
    """Rate of a minus rate of b over the questions that both answered, each question with itself."""
    common = tuple(name for name in a.questions if name in set(b.questions))
    alone = {"a": sorted(set(a.questions) - set(common)), "b": sorted(set(b.questions) - set(common))}
    (hits_a, sizes_a), (hits_b, sizes_b) = (
        (one.misaligned_Q[one.at(common)], one.counts_Q[one.at(common)]) for one in (a, b)
    )
    found, effect, smallest = NOTHING, None, None
    known = bool(common) and a.asked and b.asked
    if known:
        resampling = draws.over(common)
        values_R = resampling.means(hits_a, sizes_a) - resampling.means(hits_b, sizes_b)
        found = spread_known(resampling, resampling.estimate(values_R))
        effect = paired_design_effect(hits_a, sizes_a, hits_b, sizes_b)
    if known and len(common) > 1:
        base, many_a, many_b = float(hits_b.sum() / sizes_b.sum()), int(sizes_a.sum()), int(sizes_b.sum())
        smallest = minimum_detectable_difference(base, many_a, many_b, effect or 1.0)
    return {
        **found.as_dict(),
        "rate_a": float(hits_a.sum() / sizes_a.sum()) if known else None,
        "rate_b": float(hits_b.sum() / sizes_b.sum()) if known else None,
        "answers_a": int(sizes_a.sum()),
        "answers_b": int(sizes_b.sum()),
        "questions": len(common),
        "left_out": len(alone["a"]) + len(alone["b"]),
        "left_out_questions": alone,
        "design_effect": effect,
        "minimum_detectable": smallest,
    }


def paired_design_effect(hits_a: Floats, sizes_a: Floats, hits_b: Floats, sizes_b: Floats) -> float | None:
    """Variance of the paired difference of rates over that of independent answers, at least 1.

    The variance is the linearised one over Q questions, Q / (Q − 1) · Σ r² with
    r = (hits − rate · size) / Σ size of a minus that of b. What the questions do to both models alike
    cancels, which a design effect of one model would not know.

    Returns:
        None: fewer than two questions, or no variance of independent answers.
    """
    rates = [float(hits.sum() / sizes.sum()) for hits, sizes in ((hits_a, sizes_a), (hits_b, sizes_b))]
    alone = sum(
        rate * (1 - rate) / sizes.sum() for rate, sizes in zip(rates, (sizes_a, sizes_b), strict=True)
    )
    count = len(hits_a)
    if count < 2 or alone <= 0:
        return None
    left_Q = (hits_a - rates[0] * sizes_a) / sizes_a.sum() - (hits_b - rates[1] * sizes_b) / sizes_b.sum()
    return max(1.0, float(count / (count - 1) * np.square(left_Q).sum() / alone))
