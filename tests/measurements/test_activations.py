"""Streamed means and covariances against naive ones; only answer tokens count."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import Rows, collate
from em.errors import MeasurementError
from em.hooks import Site, capturing, editing
from em.measurements.activations import Moments, activations, collect, merged, split_half
from tests.measurements.samples import examples, rows
from tests.tiny import tiny_backbone

EXAMPLES = examples(9)
SITES = [Site(0), Site(1, "mlp"), Site(2)]


@torch.no_grad()
def answer_states(backbone: Backbone, site: Site) -> list[Tensor]:
    """States of each answer's tokens, from one unpadded row at a time."""
    found = []
    for one in EXAMPLES:
        with capturing({site: backbone.module_at(site)}) as captured:
            backbone.trunk(torch.tensor([one.ids]))
        found.append(captured[site][0][torch.tensor(one.answer)].double())
    return found


@pytest.mark.parametrize("size", [1, 4])
def test_moments_equal_the_naive_ones(size: int) -> None:
    """Neither prompts nor padding count: naive states are of unpadded answers."""
    backbone = tiny_backbone()
    found = collect(backbone, {"all": rows(EXAMPLES, size)}, SITES, covariance=True)["all"]
    assert found.answers == len(EXAMPLES)
    for site in SITES:
        states_ND = torch.cat(answer_states(backbone, site))
        assert float(found.counts.sum()) == len(states_ND)
        torch.testing.assert_close(found.mean(site), states_ND.mean(dim=0), rtol=1e-5, atol=1e-5)
        expected = torch.cov(states_ND.T, correction=0)
        torch.testing.assert_close(found.covariance(site), expected, rtol=1e-4, atol=1e-4)


def test_every_answer_counts_once_when_asked() -> None:
    backbone = tiny_backbone()
    found = collect(backbone, {"all": rows(EXAMPLES)}, SITES, weighting="answer")["all"]
    assert float(found.counts.sum()) == pytest.approx(len(EXAMPLES), abs=1e-12)
    expected = torch.stack([states.mean(dim=0) for states in answer_states(backbone, SITES[2])])
    torch.testing.assert_close(found.mean(SITES[2]), expected.mean(dim=0), rtol=1e-5, atol=1e-5)
    by_token = collect(backbone, {"all": rows(EXAMPLES)}, SITES)["all"]
    assert not torch.allclose(found.mean(SITES[2]), by_token.mean(SITES[2]), atol=1e-2)


def test_a_prompt_is_in_the_bag_of_its_index() -> None:
    backbone = tiny_backbone()
    found = collect(backbone, {"all": rows(EXAMPLES)}, SITES, bags=4)["all"]
    states = answer_states(backbone, SITES[0])
    for bag in range(4):
        own = torch.cat([states[index] for index in range(bag, len(EXAMPLES), 4)])
        assert float(found.counts[bag]) == len(own)
        torch.testing.assert_close(found.sums[SITES[0]][bag], own.sum(dim=0), rtol=1e-5, atol=1e-4)
    weights_B = torch.tensor([1.0, 0.0, 0.0, 2.0]).double()
    expected = (found.sums[SITES[0]][0] + 2 * found.sums[SITES[0]][3]) / (
        found.counts[0] + 2 * found.counts[3]
    )
    torch.testing.assert_close(found.mean(SITES[0], weights_B), expected)


def test_blank_rows_do_not_count() -> None:
    backbone = tiny_backbone()
    blank = Rows(
        torch.full((1, 3), 9), torch.ones(1, 3, dtype=torch.bool), torch.tensor([3]), torch.tensor([-1])
    )
    for weighting in ("token", "answer"):
        plain, more = (
            collect(backbone, {"g": given}, SITES, True, weighting)["g"]
            for given in (rows(EXAMPLES), [*rows(EXAMPLES), blank, collate([], [], 0)])
        )
        assert torch.equal(plain.counts, more.counts) and plain.answers == more.answers
        for site in SITES:
            assert torch.equal(plain.sums[site], more.sums[site])
            assert torch.equal(plain.squares[site], more.squares[site])


def test_shards_add_up_to_the_whole() -> None:
    backbone = tiny_backbone()
    listed = rows(EXAMPLES, 1)
    whole, *shards = (
        collect(backbone, {"g": given, "h": given[:1]}, SITES, covariance=True)
        for given in (listed, listed[::2], listed[1::2])
    )
    total = merged(shards)
    assert total["h"].answers == 2
    torch.testing.assert_close(total["g"].counts, whole["g"].counts, rtol=0, atol=0)
    for site in SITES:
        for part in ("sums", "squares"):
            one, other = getattr(total["g"], part)[site], getattr(whole["g"], part)[site]
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert shards[0]["g"].answers == 5, "parts stay as they were"


def test_what_is_kept_does_not_grow_with_examples() -> None:
    backbone = tiny_backbone()

    def numbers(count: int) -> int:
        found = collect(backbone, {"g": rows(examples(count))}, SITES, covariance=True)["g"]
        return sum(t.numel() for t in (*found.sums.values(), *found.squares.values(), found.counts))

    assert numbers(1) == numbers(30) == len(SITES) * (16 * 32 + 32 * 32) + 16


def test_a_group_without_answers_is_refused() -> None:
    found = collect(tiny_backbone(), {"none": [], "blank": [collate([], [], 0)]}, SITES)
    for group in found.values():
        assert group.answers == 0
        with pytest.raises(MeasurementError, match="no answer token to average"):
            group.mean(SITES[0])


def spoil(where: Tensor) -> Any:
    """An edit that puts NaN at some positions of the first row."""

    def edit(hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD.clone()
        hidden_BTD[0, where] = float("nan")
        return hidden_BTD

    return edit


def test_activations_that_are_not_finite_name_site_and_example() -> None:
    backbone = tiny_backbone()
    [batch] = rows(EXAMPLES, 20)
    example = int(batch.index_B[0])
    message = f"group sick, example {example}: activations at 2.block are not finite"
    with (
        editing(backbone.layers[2], spoil(batch.answer_BT[0])),
        pytest.raises(MeasurementError, match=message),
    ):
        collect(backbone, {"sick": [batch]}, [Site(0), Site(2)])


def test_what_stands_off_the_answers_does_not_matter() -> None:
    backbone = tiny_backbone()
    [batch] = rows(EXAMPLES, 20)
    expected = collect(backbone, {"g": [batch]}, [Site(2)], covariance=True)["g"]
    with editing(backbone.layers[2], spoil(~batch.answer_BT[0])):
        found = collect(backbone, {"g": [batch]}, [Site(2)], covariance=True)["g"]
    assert torch.equal(found.sums[Site(2)], expected.sums[Site(2)])
    assert torch.equal(found.squares[Site(2)], expected.squares[Site(2)])


def test_sums_are_in_float64() -> None:
    """An offset of 2e4 beside values of about 1, as massive activations have it."""
    backbone = tiny_backbone()
    [batch] = rows(examples(40), 40)
    with editing(backbone.layers[2], lambda hidden: hidden + 2e4):
        states = activations(backbone, batch, [Site(2)])[Site(2)][batch.answer_BT].double()
        found = collect(backbone, {"g": [batch]}, [Site(2)])["g"]
    torch.testing.assert_close(found.mean(Site(2)), states.mean(dim=0), rtol=1e-14, atol=0)


def test_captured_states_are_copies() -> None:
    backbone = tiny_backbone()
    [batch] = rows(EXAMPLES, 20)

    def in_place(_module: Any, _args: Any, output: Tensor) -> None:
        output.mul_(0.0)

    expected = activations(backbone, batch, [Site(1)])[Site(1)]
    modules = {Site(1): backbone.module_at(Site(1))}
    with torch.no_grad(), capturing(modules) as captured:
        handle = backbone.layers[1].register_forward_hook(in_place)  # after the capture
        try:
            backbone.trunk(batch.input_ids_BT)
        finally:
            handle.remove()
    torch.testing.assert_close(captured[Site(1)], expected)
    assert backbone.steer_BT is None


def simulated(signal: float, prompts: int, seed: int = 0, width: int = 64) -> tuple[Moments, Moments]:
    """Two groups of one token a prompt whose means differ by `signal` along the first axis."""
    rng = np.random.default_rng(seed)
    bag = torch.arange(prompts) % 16
    made = []
    for shift in (signal, 0.0):
        points = torch.tensor(rng.normal(0, 1, (prompts, width)) + shift * np.eye(width)[0])
        sums = torch.zeros(16, width, dtype=torch.float64).index_add_(0, bag, points)
        counts = torch.zeros(16, dtype=torch.float64).index_add_(0, bag, torch.ones(prompts).double())
        made.append(Moments({Site(0): sums}, counts, prompts))
    return made[0], made[1]


def test_reliability_is_near_one_for_a_direction_and_near_zero_for_noise() -> None:
    assert split_half(*simulated(10.0, 160), Site(0)).mean() > 0.9
    noise = [split_half(*simulated(0.0, 160, seed), Site(0)).mean() for seed in range(10)]
    assert abs(np.mean(noise)) < 0.1


@pytest.mark.parametrize("prompts", [2, 3, 5, 15, 17])
def test_reliability_with_few_prompts(prompts: int) -> None:
    """Halves of the bags that hold prompts: never an empty half."""
    found = split_half(*simulated(100.0, prompts), Site(0))
    assert len(found) == 20 and found.min() > 0.8
    repeated = split_half(*simulated(100.0, prompts), Site(0))
    assert np.array_equal(found, repeated)


def test_one_prompt_has_no_halves() -> None:
    with pytest.raises(MeasurementError, match="two prompts"):
        split_half(*simulated(1.0, 1), Site(0))
