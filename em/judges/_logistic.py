"""Logistic regression with an L2 penalty chosen by cross-validation over groups, and calibrated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from em.hooks import keyed_seed
from em.stats import Floats

Ints = NDArray[np.int64]
L2_GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)  # per observation: the loss is a mean
FOLDS = 5
NEWTON_STEPS = 50


@dataclass(frozen=True)
class Logistic:
    """P(positive) = σ(slope · (w · (x − mean) / scale + bias) + offset).

    Args:
        mean_D, scale_D: of the training features.
        weight_D, bias: of the regression.
        slope, offset: of Platt's calibration, fitted on out-of-fold scores.
        l2: strength of the penalty.
    """

    mean_D: Floats
    scale_D: Floats
    weight_D: Floats
    bias: float
    slope: float = 1.0
    offset: float = 0.0
    l2: float = 0.0

    def standardised(self, features_ND: Floats) -> Floats:
        return np.asarray((features_ND - self.mean_D) / self.scale_D, dtype=float)

    def scores(self, features_ND: Floats) -> Floats:
        """Log odds before calibration, shape (N,)."""
        # Not a matrix product: its rounding would depend on the number of rows.
        return np.asarray((self.standardised(features_ND) * self.weight_D).sum(axis=1) + self.bias)

    def probabilities(self, features_ND: Floats) -> Floats:
        """Calibrated P(positive), shape (N,)."""
        return np.asarray(expit(self.slope * self.scores(features_ND) + self.offset))


class Problem:
    """Regressions of the same observations with penalties of different strength.

    Minimised is the mean log loss + l2/2 · ‖w‖² over standardised features; the bias has no penalty.

    Args:
        features_ND: as they are.
        labels_N: 1 or 0.
    """

    def __init__(self, features_ND: Floats, labels_N: Floats):
        self.mean_D, deviation_D = features_ND.mean(axis=0), features_ND.std(axis=0)
        # A constant feature has only rounding for a deviation.
        constant_D = deviation_D <= 1e-9 * np.maximum(1.0, np.abs(self.mean_D))
        self.scale_D = np.where(constant_D, 1.0, deviation_D)
        scaled_ND = np.where(constant_D, 0.0, (features_ND - self.mean_D) / self.scale_D)
        self.basis_RD: Floats | None = None
        if scaled_ND.shape[1] > scaled_ND.shape[0]:
            # The optimum lies in the span of the observations: rotating into it leaves ‖w‖ and all scores.
            left_NR, values_R, self.basis_RD = np.linalg.svd(scaled_ND, full_matrices=False)
            scaled_ND = left_NR * values_R
        self.inputs_NR = np.hstack([scaled_ND, np.ones((len(scaled_ND), 1))])
        self.labels_N = labels_N
        self.start_R = np.zeros(self.inputs_NR.shape[1])

    def solve(self, l2: float) -> Logistic:
        """The optimum, by Newton's method with a line search; the last optimum is where it starts."""
        weight_R = self.start_R
        for _ in range(NEWTON_STEPS):
            value, slope_R, curvature_RR = self._expansion(weight_R, l2)
            step_R = np.linalg.solve(curvature_RR, slope_R)
            gain = float(slope_R @ step_R)
            if gain < 1e-13:
                break
            size = 1.0
            while size > 1e-6 and self._value(weight_R - size * step_R, l2) > value - 0.25 * size * gain:
                size /= 2
            weight_R = weight_R - size * step_R
        self.start_R = weight_R
        weight = weight_R[:-1] if self.basis_RD is None else weight_R[:-1] @ self.basis_RD
        return Logistic(self.mean_D, self.scale_D, np.asarray(weight), float(weight_R[-1]), l2=l2)

    def _value(self, weight_R: Floats, l2: float) -> float:
        margin_N = (2 * self.labels_N - 1) * (self.inputs_NR @ weight_R)
        return float(-log_expit(margin_N).mean() + l2 / 2 * weight_R[:-1] @ weight_R[:-1])

    def _expansion(self, weight_R: Floats, l2: float) -> tuple[float, Floats, Floats]:
        count, penalty_R = len(self.labels_N), np.full(len(weight_R), l2)
        penalty_R[-1] = 0.0
        chance_N = expit(self.inputs_NR @ weight_R)
        slope_R = self.inputs_NR.T @ (chance_N - self.labels_N) / count + penalty_R * weight_R
        spread_N = chance_N * (1 - chance_N) / count
        curvature_RR = (self.inputs_NR.T * spread_N) @ self.inputs_NR
        # A little on the diagonal, or it is singular where every observation is predicted with certainty.
        curvature_RR[np.diag_indices_from(curvature_RR)] += penalty_R + 1e-12
        return self._value(weight_R, l2), slope_R, curvature_RR


def fit(
    features_ND: Floats,
    labels_N: Floats,
    groups: Sequence[str],
    seed: int = 0,
    grid: Sequence[float] = L2_GRID,
) -> tuple[Logistic, Floats]:
    """The regression with the strength that predicts unseen groups best, calibrated.

    Args:
        labels_N: 1 or 0.
        groups: of each observation (its prompt); a group is never split between folds.
        seed: key of the folds.
        grid: strengths to choose from, by log loss out of fold.

    Returns:
        The calibrated model, and the calibrated out-of-fold probabilities, shape (N,).

    Raises:
        ValueError: one of the classes is missing, or there are fewer than two groups.
    """
    if not (labels_N == 1).any() or not (labels_N == 0).any():
        raise ValueError("both classes are needed")
    fold_N = folds(groups, labels_N, seed)
    strengths = sorted(grid, reverse=True)  # each optimum is near that of the next stronger penalty
    scores_GN = _out_of_fold(features_ND, labels_N, fold_N, strengths)
    best = int(np.argmin([_log_loss(score_N, labels_N) for score_N in scores_GN]))
    slope, offset = platt(scores_GN[best], labels_N)
    plain = Problem(features_ND, labels_N).solve(strengths[best])
    return replace(plain, slope=slope, offset=offset), np.asarray(expit(slope * scores_GN[best] + offset))


def folds(groups: Sequence[str], labels_N: Floats, seed: int = 0, count: int = FOLDS) -> Ints:
    """The fold of each observation, shape (N,): whole groups, in keyed order, the classes spread evenly.

    Raises:
        ValueError: fewer than two groups.
    """
    positive: dict[str, list[float]] = {}
    for group, label in zip(groups, labels_N, strict=True):
        positive.setdefault(group, []).append(float(label))
    if len(positive) < 2:
        raise ValueError("fewer than two groups")
    order = sorted(
        positive, key=lambda group: (float(np.mean(positive[group])), keyed_seed(seed, "fold", group), group)
    )
    count = min(count, len(order))
    place = {group: number % count for number, group in enumerate(order)}
    return np.array([place[group] for group in groups], dtype=np.int64)


def _out_of_fold(features_ND: Floats, labels_N: Floats, fold_N: Ints, strengths: Sequence[float]) -> Floats:
    """Scores of every observation by a model that has not seen its fold, for each strength, shape (G, N)."""
    scores_GN = np.zeros((len(strengths), len(labels_N)))
    for fold in range(int(fold_N.max()) + 1):
        inside_N = fold_N != fold
        problem = Problem(features_ND[inside_N], labels_N[inside_N])
        for number, l2 in enumerate(strengths):
            scores_GN[number, ~inside_N] = problem.solve(l2).scores(features_ND[~inside_N])
    return scores_GN


def _log_loss(score_N: Floats, labels_N: Floats) -> float:
    return float(-log_expit((2 * labels_N - 1) * score_N).mean())


def platt(score_N: Floats, labels_N: Floats) -> tuple[float, float]:
    """Slope and offset of P = σ(slope · score + offset), with Platt's (1999) softened targets.

    The slope is not negative: scores that say nothing give everybody the share of positives.
    """
    positives, negatives = float(labels_N.sum()), float((1 - labels_N).sum())
    target_N = np.where(labels_N == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = float(score_N.std()) or 1.0  # so that the search does not depend on the scale of the scores
    scaled_N = score_N / spread

    def objective(packed: Floats) -> tuple[float, Floats]:
        odds_N = packed[0] * scaled_N + packed[1]
        value = -(target_N * log_expit(odds_N) + (1 - target_N) * log_expit(-odds_N)).mean()
        pull_N = (expit(odds_N) - target_N) / len(target_N)
        return float(value), np.array([pull_N @ scaled_N, pull_N.sum()])

    start, bounds = np.array([1.0, 0.0]), [(0.0, None), (None, None)]
    options = {"maxiter": 2000, "gtol": 1e-10, "ftol": 1e-15}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return float(found[0] / spread), float(found[1])
