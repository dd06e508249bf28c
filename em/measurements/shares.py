"""How much of one solution's shift another one keeps, in the training domain and elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from em.errors import MeasurementError
from em.stats import NOTHING, Estimate, Floats, Resampling


@dataclass(frozen=True)
class DomainShift:
    """How far each solution moved on the P held-out rows of one domain, in nats per token.

    Args:
        clusters: prompt of each row; rows of one prompt are not independent.
        weights_P: of each row in the domain's mean: 1, or its answer tokens.
        shifts: solution -> shift of each row, shape (P,).
    """

    domain: str
    clusters: list[str]
    weights_P: Floats
    shifts: dict[str, Floats]


class Shares:
    """Shifts of solutions in every resample, and their ratios to those of the general solution.

    Each domain has its own prompts and so its own draws, which all solutions share: whatever is compared
    between solutions is paired.

    Args:
        domains: where it was measured.
        own: the training domains; all others are "elsewhere".
        general: the solution whose shifts are 100%.

    Raises:
        MeasurementError: a training domain was not measured, or no other one was.
    """

    def __init__(
        self,
        domains: Sequence[DomainShift],
        own: Sequence[str],
        general: str,
        resamples: int = 2000,
        seed: int = 0,
    ):
        names = [one.domain for one in domains]
        self.general = general
        self.own = [name for name in names if name in own]
        self.others = [name for name in names if name not in own]
        if not self.own or not self.others:
            measured, trained = ", ".join(names) or "no domain", ", ".join(own) or "none"
            raise MeasurementError(
                f"measured in {measured}, trained on {trained}: shares need the training domain and another "
                "one; add both to data.domains (for margins: with answer, or in data.pairs)"
            )
        self._draws = {one.domain: Resampling(one.clusters, resamples, seed, one.domain) for one in domains}
        self._means = {
            one.domain: {
                name: self._draws[one.domain].means(shift_P * one.weights_P, one.weights_P)
                for name, shift_P in one.shifts.items()
            }
            for one in domains
        }

    def draws(self, domains: Sequence[str]) -> Resampling:
        """Those of the domain with the fewest prompts, whose quantiles are widened most."""
        return min((self._draws[name] for name in domains), key=lambda one: one.count)

    def moved(self, solution: str, domains: Sequence[str]) -> Floats:
        """Mean shift over domains, each counted once, in every resample; shape (R,)."""
        return np.asarray(np.mean([self._means[name][solution] for name in domains], axis=0))

    def kept(self, solution: str, domains: Sequence[str]) -> Floats:
        """Mean shift over that of the general solution, shape (R,); NaN where the latter is not above 0.

        The ratio of the means, not the mean of each domain's ratio: a domain in which the general solution
        hardly moved would otherwise decide it.
        """
        return ratio(self.moved(solution, domains), self.moved(self.general, domains))

    def gap(self, solution: str) -> Floats:
        """Share kept in the training domain minus share kept elsewhere, shape (R,)."""
        return np.asarray(self.kept(solution, self.own) - self.kept(solution, self.others))

    def narrowness(self, solution: str) -> Floats:
        """Shift elsewhere over shift in the training domain, shape (R,); 0: narrow, 1: general."""
        return ratio(self.moved(solution, self.others), self.moved(solution, self.own))

    def estimate(self, values_R: Floats, domains: Sequence[str] | None = None) -> Estimate:
        """See `interval`; by default for what depends on all domains."""
        return interval(values_R, self.draws(domains or [*self.own, *self.others]))


def ratio(top_R: Floats, bottom_R: Floats) -> Floats:
    """top / bottom in each resample, NaN where the bottom is not above 0."""
    return np.asarray(top_R / np.where(bottom_R > 0, bottom_R, np.nan))


def interval(values_R: Floats, draws: Resampling, level: float = 0.95) -> Estimate:
    """Value and interval of a statistic that may not exist in every resample.

    There is no interval with a single cluster, of whose spread nothing is known, nor where the statistic
    does not exist in more than the tail of the resamples: the interval of such a ratio has no end, and
    leaving those resamples out would hide it.
    """
    if not np.isfinite(values_R[0]):
        return NOTHING
    missing = int(np.isnan(values_R[1:]).sum())
    if draws.count < 2 or missing > (1 - level) / 2 * (len(values_R) - 1):
        return Estimate(float(values_R[0]), None, None)
    return draws.estimate(values_R, level)
