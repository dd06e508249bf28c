"""Shares of answers: intervals, dependence within questions, and what a sample is large enough to show."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from scipy import stats as scipy_stats

from em.stats import NOTHING, Estimate, Floats, Resampling


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Share with Wilson's score interval, for independent observations (Wilson 1927).

    With no success the lower bound is exactly 0, with nothing but successes the upper one exactly 1;
    without observations there is no share.

    Raises:
        ValueError: not 0 ≤ successes ≤ n, or a level outside (0, 1).
    """
    if not 0 <= successes <= n or not 0 < level < 1:
        raise ValueError(f"expected 0 ≤ successes ≤ n and 0 < level < 1, got {successes}, {n}, {level}")
    if n == 0:
        return NOTHING
    z, share = NormalDist().inv_cdf((1 + level) / 2), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    high = 1.0 if successes == n else min(1.0, float(centre + half))
    return Estimate(share, low, high)


def newcombe(a: tuple[int, int], b: tuple[int, int]) -> Estimate:
    """Difference of two shares with Newcombe's interval (1998, method 10), for independent observations.

    Args:
        a, b: successes and n of each.

    Returns:
        nothing where one of them has no observations.
    """
    (p, p_low, p_high), (q, q_low, q_high) = (
        (one.value, one.low, one.high) for one in (wilson(*a), wilson(*b))
    )
    if p is None or p_low is None or p_high is None or q is None or q_low is None or q_high is None:
        return NOTHING
    down, up = float(np.hypot(p - p_low, q_high - q)), float(np.hypot(p_high - p, q - q_low))
    return Estimate(p - q, p - q - down, p - q + up)


def minimum_detectable_difference(
    rate: float, n_a: int, n_b: int, design_effect: float = 1.0, power: float = 0.8, level: float = 0.95
) -> float | None:
    """The smallest rise from `rate` that a two-sided test of two shares finds with this power.

    Solves d = z(level)·√(p̄(1−p̄)(1/a + 1/b)) + z(power)·√(p₁(1−p₁)/a + p₂(1−p₂)/b) for p₂ = p₁ + d
    (Fleiss, Levin & Paik 2003, §4.2), where a and b are the sizes over the design effect.

    Returns:
        None: even a rate of 1 would not be told from `rate`.

    Raises:
        ValueError: a rate outside [0, 1], negative sizes, a design effect not above 0, a power outside
            [0.5, 1) or a level outside (0, 1).
    """
    sizes = n_a >= 0 and n_b >= 0 and np.isfinite(design_effect) and design_effect > 0
    if not (0 <= rate <= 1 and sizes and 0.5 <= power < 1 and 0 < level < 1):
        raise ValueError(
            "expected 0 ≤ rate ≤ 1, sizes from 0 on, design effect > 0, 0.5 ≤ power < 1 and 0 < level < 1, "
            f"got {rate}, {n_a}, {n_b}, {design_effect}, {power}, {level}"
        )
    if n_a == 0 or n_b == 0:
        return None
    a, b = n_a / design_effect, n_b / design_effect
    z_level, z_power = (NormalDist().inv_cdf(q) for q in ((1 + level) / 2, power))

    def excess(difference: float) -> float:
        other = min(1.0, rate + difference)
        pooled = (a * rate + b * other) / (a + b)
        null = np.sqrt(pooled * (1 - pooled) * (1 / a + 1 / b))
        own = np.sqrt(rate * (1 - rate) / a + other * (1 - other) / b)
        return float(difference - z_level * null - z_power * own)

    low, high = 0.0, 1.0 - rate
    if high == 0 or excess(high) < 0:
        return None
    # The excess is convex and not above 0 at 0, so it has one root; halving finds it even at rate 0.
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


def _by_cluster(values_N: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Values, sums and sizes of clusters."""
    values_N = np.asarray(values_N, dtype=float)
    if len(values_N) != len(clusters):
        raise ValueError(f"{len(values_N)} values but {len(clusters)} clusters")
    names = {name: index for index, name in enumerate(dict.fromkeys(clusters))}
    member_N = np.array([names[name] for name in clusters], dtype=int)
    sums_C = np.bincount(member_N, weights=values_N, minlength=len(names)).astype(float)
    return values_N, sums_C, np.bincount(member_N, minlength=len(names)).astype(float)


def intraclass_correlation(values_N: Floats, clusters: Sequence[str]) -> float | None:
    """Correlation of two values of one cluster: the one-way analysis-of-variance estimate.

    (MSB − MSW) / (MSB + (m₀ − 1)·MSW) with m₀ = (N − Σ m² / N) / (C − 1) for clusters of m values; may be
    negative (Donner & Koval 1980).

    Returns:
        None: fewer than two clusters, no cluster with two values, or all values equal.
    """
    values_N, sums_C, sizes_C = _by_cluster(values_N, clusters)
    count, clusters_count = len(values_N), len(sizes_C)
    # Equality is asked of the values, because squares of equal ones need not sum to exactly 0.
    if clusters_count < 2 or count == clusters_count or (values_N == values_N[0]).all():
        return None
    means_C = sums_C / sizes_C
    between = float((sizes_C * (means_C - values_N.mean()) ** 2).sum()) / (clusters_count - 1)
    squares = float((values_N**2).sum() - (sizes_C * means_C**2).sum())
    within = max(0.0, squares) / (count - clusters_count)
    size = (count - float((sizes_C**2).sum()) / count) / (clusters_count - 1)
    return (between - within) / (between + (size - 1) * within)


def design_effect(values_N: Floats, clusters: Sequence[str]) -> float | None:
    """How many times larger the variance of a mean is than for independent values (Kish 1965).

    1 + (m̃ − 1)·ρ with m̃ = Σ m² / N and ρ the intraclass correlation; a negative ρ counts as 0.

    Returns:
        None: fewer than two clusters or all values equal, so nothing is known of their dependence.
    """
    values_N, _, sizes_C = _by_cluster(values_N, clusters)
    if len(sizes_C) < 2 or (values_N == values_N[0]).all():
        return None
    correlation = intraclass_correlation(values_N, clusters)
    size = float((sizes_C**2).sum()) / len(values_N)
    return 1 + (size - 1) * max(0.0, correlation or 0.0)


def any_of_k_each(successes_P: Sequence[int], n_P: Sequence[int], k: int) -> Floats:
    """Chance that k samples of each prompt hold a success, from n ≥ k samples of it; shape (P,).

    1 − C(n − c, k) / C(n, k), without bias, as pass@k (Chen et al. 2021).

    Raises:
        ValueError: k < 1, a prompt with fewer than k samples, or not 0 ≤ successes ≤ n.
    """
    chances = []
    for successes, n in zip(successes_P, n_P, strict=True):
        if k < 1 or n < k or not 0 <= successes <= n:
            raise ValueError(f"expected 1 ≤ k ≤ n and 0 ≤ successes ≤ n, got k {k}, n {n}, {successes}")
        # A product of ratios, because the binomials themselves overflow.
        at = np.arange(k)
        chances.append(1 - float(np.prod(np.maximum(0, n - successes - at) / (n - at))))
    return np.array(chances)


def any_of_k(successes_per_prompt: Sequence[int], n_per_prompt: Sequence[int], k: int) -> float:
    """Mean over prompts of the chance that at least one of k samples is a success.

    Raises:
        ValueError: as `any_of_k_each`, or there is no prompt.
    """
    if len(successes_per_prompt) == 0:
        raise ValueError("no prompts")
    return float(any_of_k_each(successes_per_prompt, n_per_prompt, k).mean())


class CrossedResampling:
    """Bootstrap weights of questions and seeds at once, for answers that every seed gives to every question.

    A weight is that of the question times that of the seed, drawn independently (the pigeonhole bootstrap,
    Owen 2007); row 0 is the sample itself. Equal questions and seeds have equal draws, so that what is
    compared is paired.

    Args:
        questions, seeds: of each observation, for example of each cell (question, seed).
        resamples: bootstrap draws.
        seed: key of the draws.
        purpose: key of the draws of seeds alone: of arms whose seeds have nothing in common.

    Raises:
        ValueError: no observations, or not as many questions as seeds.
    """

    def __init__(
        self,
        questions: Sequence[str],
        seeds: Sequence[str],
        resamples: int = 2000,
        seed: int = 0,
        purpose: str = "",
    ):
        if len(questions) != len(seeds):
            raise ValueError(f"{len(questions)} questions but {len(seeds)} seeds")
        self.questions = Resampling(questions, resamples, seed, "questions")
        self.seeds = Resampling(seeds, resamples, seed, f"seeds{purpose}")
        self.weights_RN: Floats = self.questions.observations() * self.seeds.observations()

    def totals(self, values: Floats) -> Floats:
        """Weighted sums over observations: values of shape (…, N) give (R, …)."""
        return np.moveaxis(np.asarray(values, dtype=float) @ self.weights_RN.T, -1, 0)

    def means(self, sums: Floats, counts_N: Floats) -> Floats:
        """Σ sums / Σ counts in each resample; NaN where a resample holds no count."""
        totals, weights = self.totals(sums), self.totals(np.asarray(counts_N, dtype=float))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(totals / weights.reshape(-1, *[1] * (totals.ndim - 1)))

    def mean(self, sums_N: Floats, counts_N: Floats, level: float = 0.95) -> Estimate:
        """Σ sums / Σ counts with its interval."""
        return self.estimate(self.means(sums_N, counts_N), level)

    def estimate(
        self, values_R: Floats, level: float = 0.95, others: Sequence["CrossedResampling"] = ()
    ) -> Estimate:
        """Value (row 0) and t-interval of a statistic of every resample.

        Percentiles would never leave the range of the three or so seeds there are. So the variance of the
        draws is split into what the weights of the seeds explain and the rest, which is the questions';
        each part is corrected for its number of levels, and the degrees of freedom are Satterthwaite's.
        A factor with a single level adds nothing: nothing is known of its spread.

        Args:
            others: further resamplings that the statistic depends on, with the same questions.
        """
        value, draws_R = float(values_R[0]), np.asarray(values_R[1:])
        known_R = np.isfinite(draws_R)
        factors = [self.seeds, *(other.seeds for other in others)]
        if not np.isfinite(value):
            return NOTHING
        if all(one.count == 1 for one in (self.questions, *factors)):
            return Estimate(value, value, value)
        columns = sum(one.count for one in factors)
        if known_R.sum() * 2 < len(draws_R) or known_R.sum() <= 2 * columns:
            return Estimate(value, None, None)
        parts = _split([one.weights_RC[1:][known_R] for one in factors], draws_R[known_R])
        levels = [*(one.count for one in factors), self.questions.count]
        terms = [(part * c / (c - 1), c - 1) for part, c in zip(parts, levels, strict=True) if c > 1]
        total = sum(term for term, _ in terms)
        if total < 1e-24:  # rounding: nothing differs
            return Estimate(value, value, value)
        degrees = total**2 / sum(term**2 / free for term, free in terms)
        half = float(np.sqrt(total) * scipy_stats.t.ppf((1 + level) / 2, degrees))
        return Estimate(value, value - half, value + half)


def _split(weights: list[Floats], draws_R: Floats) -> list[float]:
    """Variance of draws that each set of weights explains linearly, and at the end what is left."""
    centred_R = draws_R - draws_R.mean()
    columns = np.concatenate([weights_RC - weights_RC.mean(axis=0) for weights_RC in weights], axis=1)
    slopes = np.linalg.lstsq(columns, centred_R, rcond=None)[0]
    left_R = centred_R - columns @ slopes
    edges = np.cumsum([0, *(weights_RC.shape[1] for weights_RC in weights)])
    parts = [float((columns[:, a:b] @ slopes[a:b]).var()) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return [*parts, float(left_R.var())]
