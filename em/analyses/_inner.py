"""What the analyses of the inside of a solution share: their rows, their draws, and how they say numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from em.analyses.base import Context, Statistic
from em.comparison.study import Study, open_study
from em.errors import MeasurementError
from em.stats import Estimate, Floats, Resampling

Raw = dict[str, Any]
SEEDS = "Several runs of one configuration are its seeds; their mean is shown."


def opened(context: Context, members: Sequence[str], paired: bool = True) -> Study:
    """The members' rows, split and training domain, checked against each other; solutions by member.

    Raises:
        EmError: a member was not trained, runs do not fit together, or the training domain has no pairs.
    """
    records = context.chosen(members)
    study = open_study(
        [record.directory.path for record in records.values()],
        replace(context.compare, sections=["margins"] if paired else []),
        backbone=context.loaded(),
    )
    if paired and not study.pairs:
        raise MeasurementError(study.notes[0])
    names = dict(zip(study.records, members, strict=True))
    study.records = {names[name]: record for name, record in study.records.items()}
    study.lowest = {names[name]: layer for name, layer in study.lowest.items()}
    study.solutions = {
        names[name]: replace(one, name=names[name], arm=names.get(one.arm, one.arm))
        for name, one in study.solutions.items()
    }
    return study


def arms_of(members: Raw) -> dict[str, list[str]]:
    """Arm -> its members, of a raw table whose members say their arm."""
    arms: dict[str, list[str]] = {}
    for name, one in members.items():
        arms.setdefault(one["arm"], []).append(name)
    return arms


def prefix(arm: str, arms: Iterable[str]) -> str:
    """What stands before the names of an arm's statistics: nothing where there is one arm."""
    return "" if len(list(arms)) == 1 else f"{arm}/"


def clusters(prompts: Sequence[str]) -> list[int]:
    """Prompts by number, so that a table need not hold their text."""
    numbers = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
    return [numbers[prompt] for prompt in prompts]


def draws_of(raw: Raw, domain: str) -> Resampling:
    """The resamples of a domain's prompts, shared by all that is read from them."""
    prompts = [str(number) for number in raw["clusters"][domain]]
    return Resampling(prompts, raw["resamples"], raw["seed"], domain)


def fewest(draws: Sequence[Resampling]) -> Resampling:
    """The draws with the fewest prompts, whose spread an interval over several domains is widened for."""
    return min(draws, key=lambda one: one.count)


def stated(estimate: Estimate, n: int, unit: str, what: str, seeds: Sequence[float | None] = ()) -> Statistic:
    """An estimate as a statistic; seeds only where there are several."""
    listed = tuple(seeds) if len(seeds) > 1 else ()
    return Statistic(estimate.value, estimate.low, estimate.high, n, unit, what, listed)


def finite(values: Iterable[float]) -> list[float | None]:
    """Numbers as JSON can hold them."""
    return [float(value) if np.isfinite(value) else None for value in values]


def mean_draws(parts: Sequence[Floats]) -> Floats:
    """The mean of several statistics in each resample."""
    return np.asarray(np.mean(parts, axis=0))
