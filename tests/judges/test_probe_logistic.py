import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from em.judges._logistic import Problem, fit, folds, platt
from em.stats import Floats, auroc


def planted(
    groups: int = 40, width: int = 5, strength: float = 1.0, seed: int = 0
) -> tuple[Floats, Floats, list[str]]:
    """Two observations a group, one of either class, apart along the first feature."""
    draw = np.random.default_rng(seed)
    labels = np.tile([1.0, 0.0], groups)
    features = draw.normal(size=(2 * groups, width)) * 3 + 1
    features[:, 0] += strength * 3 * (2 * labels - 1)
    return features, labels, [f"g{number // 2}" for number in range(2 * groups)]


def objective(packed: Floats, scaled: Floats, labels: Floats, l2: float) -> float:
    chance = expit(scaled @ packed[:-1] + packed[-1])
    loss = -(labels * np.log(chance) + (1 - labels) * np.log(1 - chance)).mean()
    return float(loss + l2 / 2 * packed[:-1] @ packed[:-1])


@pytest.mark.parametrize("width", [3, 30])
@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_optimum_is_that_of_a_general_minimiser(width: int, l2: float) -> None:
    features, labels, _ = planted(groups=10, width=width)
    labels[:3] = 1.0  # so that the bias is not zero
    found = Problem(features, labels).solve(l2)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    best = minimize(objective, np.zeros(width + 1), (scaled, labels, l2), tol=1e-12, options={"gtol": 1e-8}).x
    assert np.append(found.weight_D, found.bias) == pytest.approx(best, abs=2e-5)
    assert found.scores(features) == pytest.approx(scaled @ best[:-1] + best[-1], abs=1e-4)


def test_one_feature_by_hand() -> None:
    # x = ±1 and a label that agrees in 3 of 4 cases: without penalty the slope is the log odds of 3 to 1.
    features = np.array([[1.0]] * 4 + [[-1.0]] * 4)
    labels = np.array([1.0, 1, 1, 0, 0, 0, 0, 1])
    found = Problem(features, labels).solve(0.0)
    assert found.weight_D == pytest.approx([np.log(3)], abs=1e-6)
    assert found.bias == pytest.approx(0.0, abs=1e-6)
    assert found.probabilities(np.array([[1.0]])) == pytest.approx([0.75], abs=1e-6)


def test_the_gradient_is_zero_with_many_more_features_than_observations() -> None:
    features, labels, _ = planted(groups=8, width=200)
    found = Problem(features, labels).solve(0.1)
    scaled = found.standardised(features)
    pull = (expit(found.scores(features)) - labels) / len(labels)
    assert np.abs(scaled.T @ pull + 0.1 * found.weight_D).max() < 1e-6
    assert abs(pull.sum()) < 1e-8


def test_strengths_in_any_order_give_the_same_optimum() -> None:
    features, labels, _ = planted()
    one, other = Problem(features, labels), Problem(features, labels)
    one.solve(10.0)
    assert one.solve(0.01).weight_D == pytest.approx(other.solve(0.01).weight_D, abs=1e-6)


def test_separable_classes_and_almost_no_penalty_end() -> None:
    features, labels, _ = planted(strength=50.0)
    found = Problem(features, labels).solve(1e-6)
    assert np.isfinite(found.weight_D).all()
    assert auroc(found.scores(features[labels == 1]), found.scores(features[labels == 0])) == 1.0


def test_a_constant_feature_gets_no_weight() -> None:
    features, labels, groups = planted()
    features[:, 2] = 1e6 + 1e-5 * np.random.default_rng(0).normal(size=len(features))
    model, _ = fit(features, labels, groups)
    assert model.weight_D[2] == 0.0
    assert np.isfinite(model.scores(features)).all()


def test_scores_do_not_depend_on_their_neighbours() -> None:
    features, labels, groups = planted()
    model, _ = fit(features, labels, groups)
    alone = np.concatenate([model.probabilities(row[None]) for row in features])
    assert (alone == model.probabilities(features)).all()


def test_a_group_is_never_split_and_the_folds_are_even() -> None:
    labels = np.array([1.0, 0.0] * 20 + [0.0] * 10)
    groups = [f"p{n // 2}" for n in range(40)] + [f"only{n}" for n in range(10)]
    fold = folds(groups, labels, seed=3)
    by_group: dict[str, set[int]] = {}
    for group, number in zip(groups, fold, strict=True):
        by_group.setdefault(group, set()).add(int(number))
    assert all(len(found) == 1 for found in by_group.values())
    assert sorted(np.bincount(fold)) == [10, 10, 10, 10, 10]
    assert [int(labels[fold == number].sum()) for number in range(5)] == [4] * 5
    assert (fold == folds(groups, labels, seed=3)).all()
    assert (fold != folds(groups, labels, seed=4)).any()


def test_two_groups_give_two_folds_and_one_is_refused() -> None:
    assert sorted(folds(["a", "a", "b", "b"], np.array([1.0, 0, 1, 0]))) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="fewer than two groups"):
        folds(["a", "a"], np.array([1.0, 0.0]))


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="both classes"):
        fit(np.zeros((4, 2)), np.ones(4), ["a", "b", "c", "d"])


def test_groups_that_leak_are_not_rewarded() -> None:
    # Each group has one label and a code of its own: only splitting groups could predict it.
    draw = np.random.default_rng(0)
    codes = draw.normal(size=(30, 60)).repeat(4, axis=0)
    labels = draw.permutation(np.repeat([1.0, 0.0], 15)).repeat(4)
    groups = [f"g{number // 4}" for number in range(120)]
    _, kept_together = fit(codes, labels, groups)
    _, split = fit(codes, labels, [str(number) for number in range(120)])
    assert auroc(split[labels == 1], split[labels == 0]) > 0.9
    assert auroc(kept_together[labels == 1], kept_together[labels == 0]) < 0.75


def test_the_penalty_is_stronger_where_there_is_more_noise() -> None:
    strong, labels, groups = planted(width=80, strength=3.0)
    noise = np.random.default_rng(1).normal(size=strong.shape)
    assert fit(noise, labels, groups)[0].l2 > fit(strong, labels, groups)[0].l2


def test_platt_by_its_equations() -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat([1.0, 0.0], [60, 40])
    scores = 5 * (draw.normal(size=100) + labels)
    slope, offset = platt(scores, labels)
    target = np.where(labels == 1, 61 / 62, 1 / 42)
    gap = expit(slope * scores + offset) - target
    assert abs(gap.sum()) < 1e-4 and abs((gap * scores).sum()) < 1e-3
    assert slope == pytest.approx(7 * platt(7 * scores, labels)[0], rel=1e-4)


def test_scores_that_say_nothing_become_the_share_of_positives() -> None:
    scores, labels = np.array([-1.0, -1, 1, 1] * 10), np.array([1.0, 1, 0, 0] * 10)
    slope, offset = platt(scores, labels)
    assert slope == 0.0
    assert offset == pytest.approx(0.0, abs=1e-6)
    slope, offset = platt(np.zeros(40), np.array([1.0] * 30 + [0.0] * 10))
    assert offset == pytest.approx(logit((30 * 31 / 32 + 10 / 12) / 40), abs=1e-6)


def test_chances_are_calibrated_on_unseen_groups() -> None:
    features, labels, groups = planted(groups=200, width=20, strength=0.4)
    model, _ = fit(features, labels, groups)
    new, truth, _ = planted(groups=2000, width=20, strength=0.4, seed=9)
    chances = model.probabilities(new)
    for low in (0.1, 0.3, 0.5, 0.7):
        inside = (chances >= low) & (chances < low + 0.2)
        assert truth[inside].mean() == pytest.approx(chances[inside].mean(), abs=0.08)
