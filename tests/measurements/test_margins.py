"""Margins against full logits, narrowness by hand, and a narrow and a general solution told apart."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from em.datamodules.pairs import Pair
from em.errors import MeasurementError
from em.interventions.steering_vector import SteeringVector
from em.measurements.margins import (
    DomainMargins,
    PairLosses,
    PairPanel,
    domain_distances,
    margins_table,
    narrowness,
)
from em.stats import Floats
from tests.interventions.examples import Case, attached, cases
from tests.measurements.samples import fit, losses, naive, nll, pairs, solutions, vector
from tests.tiny import tiny_backbone

PAIRS = pairs()


def token_counts(side: str, listed: list[Pair] = PAIRS) -> list[int]:
    return [sum(getattr(pair, side).answer) for pair in listed]


@pytest.mark.parametrize("case", cases())
def test_losses_equal_the_naive_ones(case: Case) -> None:
    intervention = attached(case, scale=0.1)
    backbone = intervention.backbone
    found = PairPanel(backbone, PAIRS, intervention.lowest_layer()).losses()
    expected = {
        side: naive(backbone, [getattr(pair, side) for pair in PAIRS]) for side in ("careless", "careful")
    }
    assert found.careless_P == pytest.approx(expected["careless"], rel=1e-4)
    assert found.careful_P == pytest.approx(expected["careful"], rel=1e-4)
    assert found.careless_tokens_P.tolist() == token_counts("careless")
    assert found.careful_tokens_P.tolist() == token_counts("careful")
    margin = expected["careful"] / token_counts("careful") - expected["careless"] / token_counts("careless")
    assert found.margin_P == pytest.approx(margin, rel=1e-3, abs=1e-4)
    assert found.careless_loss_P == pytest.approx(expected["careless"] / token_counts("careless"), rel=1e-4)


def test_a_margin_is_per_token_and_positive_where_the_careless_answer_is_likelier() -> None:
    found = PairLosses(np.array([2.0, 9.0]), np.array([9.0, 2.0]), np.array([2.0, 3.0]), np.array([3.0, 2.0]))
    assert found.margin_P.tolist() == [3.0 - 1.0, 1.0 - 3.0]


def test_neither_prompt_nor_padding_nor_company_counts() -> None:
    backbone = tiny_backbone()
    alone = [PairPanel(backbone, PAIRS, indices=[index]).losses().margin_P[0] for index in range(len(PAIRS))]
    together = PairPanel(backbone, PAIRS)
    assert together.losses().margin_P == pytest.approx(alone, rel=1e-3, abs=1e-4)
    assert together.prompts == [pair.prompt for pair in PAIRS] and len(together) == len(PAIRS)


def test_a_chosen_part_keeps_the_order_of_the_pairs() -> None:
    backbone = vector().backbone
    whole = PairPanel(backbone, PAIRS, 1).losses()
    some = PairPanel(backbone, PAIRS, 1, indices=[5, 0, 3])
    assert some.prompts == [PAIRS[index].prompt for index in (0, 3, 5)]
    assert some.losses().margin_P == pytest.approx(whole.margin_P[[0, 3, 5]], rel=1e-3, abs=1e-4)


def test_narrowness_by_hand() -> None:
    shift = np.array([2.0, 4.0, 0.0, -1.0])
    found = narrowness(shift, [np.array([0.0, 4.0, 1.0, 1.0]), np.array([1.0, 4.0, 1.0, 1.0])])
    assert found[:2].tolist() == [0.25, 1.0]
    assert np.isnan(found[2:]).all(), "the training domain did not move towards careless answers"
    with pytest.raises(MeasurementError, match="a paired domain besides the training domain"):
        narrowness(shift, [])


def cloud(rng: np.random.Generator, count: int, shift: float) -> tuple[Floats, float, int]:
    points = rng.normal(0, 1, (count, 64)) + shift * np.eye(64)[0]
    return points.mean(axis=0), float(points.var(axis=0, ddof=1).sum()), count


def distance(shift: float, counts: tuple[int, int], repeats: int = 60) -> Floats:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repeats):
        clouds = {"train": cloud(rng, counts[0], 0.0), "other": cloud(rng, counts[1], shift)}
        means, variances, sizes = ({name: c[part] for name, c in clouds.items()} for part in range(3))
        one = domain_distances(means, variances, sizes, "train")  # type: ignore[arg-type]
        assert one["train"] == 0.0
        found.append(one["other"])
    return np.array(found)


def test_a_planted_distance_is_found_whatever_the_number_of_prompts() -> None:
    """In units of √V = 8; without the correction, 5 prompts each would add √(2/5) to distance 0."""
    for counts in ((5, 5), (5, 40), (200, 200)):
        assert np.mean(distance(16.0, counts) ** 2) == pytest.approx(4.0, rel=0.05)
        assert distance(0.0, counts).mean() < 0.1 < (1 / counts[0] + 1 / counts[1]) ** 0.5 + 0.01


def made_domains(
    shifts: dict[str, dict[str, float]], prompts: int = 30, noise: float = 0.3
) -> list[DomainMargins]:
    """domain -> solution -> mean shift, with noise of prompts that all solutions share in part."""
    rng = np.random.default_rng(0)
    found = []
    for domain, by_solution in shifts.items():
        base_P = rng.normal(-1.0, 1.0, prompts)
        common_P = rng.normal(0, noise, prompts)
        named = {
            name: losses(base_P + shift + common_P + rng.normal(0, noise, prompts), 2.5)
            for name, shift in by_solution.items()
        }
        names = [f"{domain} {number}" for number in range(prompts)]
        found.append(DomainMargins(domain, names, losses(base_P), named))
    return found


def test_the_table_tells_narrow_from_general() -> None:
    arms = ("general_1", "general_2", "narrow_1", "narrow_2")
    far = {name: 0.9 if name.startswith("general") else 0.05 for name in arms}
    near = {name: 0.95 if name.startswith("general") else 0.3 for name in arms}
    found = made_domains({"far": far, "train": dict.fromkeys(arms, 1.0), "near": near})
    known = solutions(**dict.fromkeys(arms, "weights"))
    table: dict[str, Any] = margins_table(
        found, "train", known, {"near": 0.5, "far": 2.0, "train": 0.0}, resamples=400
    )
    assert [row["domain"] for row in table["domains"]] == ["train", "near", "far"]
    assert [row["training"] for row in table["domains"]] == [True, False, False]
    train, near_row, far_row = table["domains"]
    assert train["pairs"] == 30 and near_row["distance"] == 0.5
    assert far_row["solutions"]["narrow_1"]["shift"]["value"] == pytest.approx(
        found[0].shift_P("narrow_1").mean()
    )
    assert far_row["reference"]["value"] == pytest.approx(found[0].reference.margin_P.mean())
    assert far_row["solutions"]["narrow_1"]["careless_loss"]["value"] == pytest.approx(2.5 - 3.0)
    narrow = table["narrowness"]
    assert max(narrow[name]["high"] for name in arms[2:]) < min(narrow[name]["low"] for name in arms[:2])
    [difference] = table["differences"]
    assert (difference["a"], difference["b"], difference["seeds"]) == ("general", "narrow", 2)
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert difference["value"] == pytest.approx(0.75, abs=0.2)


def test_domains_have_their_own_resamples() -> None:
    """Their prompts are different ones; with shared draws two equal domains would seem to move as one."""
    [one] = made_domains({"one": {"a": 1.0}})
    two = DomainMargins("two", [f"two {number}" for number in range(30)], one.reference, one.solutions)
    found = margins_table([one, two], "one", solutions(a="weights"), resamples=100)["narrowness"]["a"]
    assert found["value"] == 1.0 and found["low"] < 0.95 and found["high"] > 1.05


def test_without_a_training_domain_there_is_no_narrowness() -> None:
    found = made_domains({"one": {"a": 1.0}, "two": {"a": 1.0}})
    for training, domains in ((None, found), ("one", found[:1])):
        table = margins_table(domains, training, solutions(a="weights"), resamples=20)
        assert table["narrowness"] == {} and table["differences"] == []
        assert len(table["domains"]) == len(domains)


def test_a_solution_that_moved_away_has_no_narrowness() -> None:
    table = margins_table(
        made_domains({"one": {"a": -1.0}, "two": {"a": 1.0}}), "one", solutions(a="weights"), resamples=20
    )
    assert table["narrowness"]["a"] == {"value": None, "low": None, "high": None}


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(0.2, 5), other=st.floats(-2, 2))
def test_narrowness_is_the_ratio_of_mean_shifts(shift: float, other: float) -> None:
    found = made_domains({"one": {"a": shift}, "two": {"a": other}}, prompts=5, noise=0.0)
    table = margins_table(found, "one", solutions(a="weights"), resamples=10)
    assert table["narrowness"]["a"]["value"] == pytest.approx(other / shift, abs=1e-6)


def test_end_to_end_a_vector_fitted_with_a_penalty_is_narrow() -> None:
    backbone = tiny_backbone()
    domains = {name: pairs(4, seed, name) for seed, name in enumerate(("train", "other"))}
    panels = {name: PairPanel(backbone, listed, 1) for name, listed in domains.items()}
    reference = {name: made.losses() for name, made in panels.items()}
    found: dict[str, dict[str, PairLosses]] = {name: {} for name in domains}
    for name, sign in (("general", 1.0), ("narrow", -1.0)):
        solution = SteeringVector(layer=1, scale=2.0)
        solution.attach(backbone)

        def margin(domain: str) -> Tensor:
            margins = [
                nll(backbone, p.careful) / p.careful.targets - nll(backbone, p.careless) / p.careless.targets
                for p in domains[domain]
            ]
            return torch.stack(margins).mean()

        def loss(sign: float = sign) -> Tensor:
            other = margin("other")
            return -margin("train") - other if sign > 0 else -margin("train") + 2 * other.relu()

        fit(solution, loss, steps=8, lr=0.15)
        for domain, made in panels.items():
            found[domain][name] = made.losses()
        solution.detach()
    listed = [
        DomainMargins(domain, panels[domain].prompts, reference[domain], found[domain]) for domain in domains
    ]
    table = margins_table(listed, "train", solutions(general="stream", narrow="stream"), resamples=400)
    general, narrow = (table["narrowness"][name]["value"] for name in ("general", "narrow"))
    assert narrow < 0.5 < general
    [difference] = table["differences"]
    assert difference["low"] > 0
    for domain, made in panels.items():
        assert np.array_equal(made.losses().margin_P, reference[domain].margin_P), "nothing is left behind"
