import math
from typing import Any

import numpy as np
import pytest
import torch

from em.errors import ConfigError
from em.generation import sampling as chosen_by
from em.generation.sampling import LEVELS, Sampling, next_tokens

LOGITS = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()


def chosen(uniform: float, sampling: Sampling, logits: torch.Tensor = LOGITS) -> int:
    """With the same number at every level."""
    return int(next_tokens(logits[None], torch.full((1, LEVELS), uniform, dtype=torch.float64), sampling))


def shares(sampling: Sampling, logits: torch.Tensor = LOGITS) -> list[float]:
    """How often each token is drawn with numbers that fill the unit cube evenly."""
    uniform = torch.quasirandom.SobolEngine(LEVELS, scramble=True, seed=0).draw(2**14, dtype=torch.float64)
    tokens = next_tokens(logits.expand(2**14, -1), uniform, sampling)
    return list(np.bincount(tokens.numpy(), minlength=len(logits)) / 2**14)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.0}, "max_tokens"),
        ({"stop": "END"}, "stop"),
        ({"stop": ("a", "")}, "stop"),
        ({"stop": (3,)}, "stop"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_a_bad_setting_is_named(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: expected"):
        Sampling(**options)


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-1, top_p=2, max_tokens=0)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "temperature",
        "top_p",
        "max_tokens",
    ]


def test_defaults_are_the_papers_and_a_list_of_stops_is_taken() -> None:
    sampling = Sampling(stop=["a"])  # type: ignore[arg-type]
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 600)
    assert sampling.stop == ("a",) and hash(sampling)


@pytest.mark.parametrize(
    ("numbers", "token"),
    [
        # Two branches a level; the upper levels have weight in the first only. 0 and 1 hold 0.6 together.
        ((0.99, 0.99, 0.59, 0.83), 0),
        ((0.0, 0.0, 0.59, 0.84), 1),
        ((0.5, 0.5, 0.61, 0.74), 2),
        ((0.5, 0.5, 0.61, 0.76), 3),
        ((1 - 2**-53,) * 4, 3),
        ((0.0,) * 4, 0),
    ],
)
def test_branches_divide_the_unit_interval_in_the_order_of_the_vocabulary(
    numbers: tuple[float, ...], token: int
) -> None:
    uniform = torch.tensor([numbers], dtype=torch.float64)
    assert next_tokens(LOGITS[None], uniform, Sampling()).tolist() == [token]


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    # At 0.5 the probabilities are squared: 0.25, 0.01, 0.09, 0.01 of 0.36.
    assert shares(Sampling(temperature=0.5)) == pytest.approx([25 / 36, 1 / 36, 9 / 36, 1 / 36], abs=1e-3)
    assert shares(Sampling(temperature=0)) == [1, 0, 0, 0]
    assert shares(Sampling(temperature=1e-300)) == [1, 0, 0, 0]


def test_top_p_keeps_the_fewest_tokens_that_hold_it() -> None:
    # 0.5 alone holds 0.5; 0.75 needs 0.5 and 0.3. Of the two equally likely ones the first comes first.
    assert shares(Sampling(top_p=0.5)) == [1, 0, 0, 0]
    assert shares(Sampling(top_p=1e-12)) == [1, 0, 0, 0]
    assert shares(Sampling(top_p=0.75)) == pytest.approx([5 / 8, 0, 3 / 8, 0], abs=1e-3)
    assert shares(Sampling(top_p=0.85)) == pytest.approx([5 / 9, 1 / 9, 3 / 9, 0], abs=1e-3)


def test_tokens_without_probability_are_never_taken() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    assert [chosen(u, Sampling(), logits) for u in (0.0, 0.5, 1 - 2**-53)] == [1, 3, 3]
    assert shares(Sampling(), logits) == pytest.approx([0, 0.5, 0, 0.5, 0], abs=1e-3)


@pytest.mark.parametrize("size", [1, 2, 16, 17, 81, 82])
def test_vocabularies_of_any_size(size: int) -> None:
    assert shares(Sampling(), torch.zeros(size)) == pytest.approx([1 / size] * size, abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token_in_their_row_only(bad: float, temperature: float) -> None:
    logits = torch.tensor([[0.0, bad, 0.0], [0.0, 50.0, 0.0], [-math.inf] * 3])
    uniform = torch.full((3, LEVELS), 0.5, dtype=torch.float64)
    assert next_tokens(logits, uniform, Sampling(temperature=temperature)).tolist() == [-1, 1, -1]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_frequencies_are_the_probabilities(top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2
    expected = logits.double().softmax(0).numpy()
    if top_p < 1:
        order = np.argsort(-expected)
        count = int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1
        expected[order[count:]] = 0
        expected /= expected.sum()
    assert shares(Sampling(top_p=top_p), logits) == pytest.approx(list(expected), abs=1e-3)


def test_noise_of_another_batch_size_changes_no_token() -> None:
    """Thousands of unlikely tokens, each narrower than the noise of a sum over all."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(49_152, generator=generator) * 2
    logits[:20] += 8
    noisy = logits + torch.randn(49_152, generator=generator) * 3e-5
    uniform = torch.rand(1000, LEVELS, generator=generator, dtype=torch.float64)
    drawn = [
        torch.cat([next_tokens(row.expand(50, -1), part, Sampling()) for part in uniform.split(50)])
        for row in (logits, noisy)
    ]
    assert len(drawn[0].unique()) > 300
    assert torch.equal(*drawn)


def test_logits_of_low_precision_are_used_as_they_are() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 300, generator=generator).bfloat16()
    uniform = torch.rand(8, LEVELS, generator=generator, dtype=torch.float64)
    expected = next_tokens(logits.double(), uniform, Sampling())
    assert torch.equal(next_tokens(logits, uniform, Sampling()), expected)


def nucleus_by_sorting(probs_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Of the whole vocabulary; of equally likely tokens the first come first."""
    ordered_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = ordered_BV.double().cumsum(dim=-1) - ordered_BV
    kept_BV = before_BV < top_p * probs_BV.sum(dim=-1, keepdim=True)
    kept_BV[:, 0] = True
    return torch.zeros_like(probs_BV).scatter_(1, order_BV, ordered_BV * kept_BV)


@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("size", [1, 7, 64, 65, 3000])
@pytest.mark.parametrize("ties", [False, True])
def test_top_p_is_that_of_a_full_sort(top_p: float, size: int, ties: bool) -> None:
    """Rows from nearly certain to nearly even, so that they need few tokens or all of them."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(40, size, generator=generator) * torch.logspace(-2, 1.5, 40)[:, None]
    logits[0] = 0
    probs = (logits.round() if ties else logits).softmax(dim=-1)
    found = chosen_by._nucleus(probs, top_p)
    assert torch.equal(found, nucleus_by_sorting(probs, top_p))
    counts = (found > 0).sum(dim=1)
    assert counts.min() >= 1 and (size < 3000 or ties or top_p != 0.9 or counts.max() > 512)


def test_top_p_orders_few_tokens_where_few_are_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    ordered: list[tuple[int, int]] = []
    topk = torch.Tensor.topk

    def counted(self: torch.Tensor, count: int, dim: int) -> Any:
        ordered.append((len(self), count))
        return topk(self, count, dim=dim)

    monkeypatch.setattr(torch.Tensor, "topk", counted)
    probs = torch.stack([torch.arange(3000.0) * 0.1, torch.zeros(3000)]).softmax(dim=-1)
    chosen_by._nucleus(probs, 0.9)
    assert ordered == [(2, 64), (1, 512), (1, 3000)]


def test_a_token_does_not_depend_on_the_other_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(33, 5000, generator=generator) * 3
    uniform = torch.rand(33, LEVELS, generator=generator, dtype=torch.float64)
    for sampling in (Sampling(), Sampling(temperature=0.7), Sampling(top_p=0.8), Sampling(temperature=0)):
        together = next_tokens(logits, uniform, sampling)
        alone = [next_tokens(logits[at : at + 1], uniform[at : at + 1], sampling) for at in range(33)]
        assert torch.equal(together, torch.cat(alone))


def test_unlikely_tokens_are_drawn_as_often_as_in_exact_arithmetic() -> None:
    """5000 tokens of 1e-9 each, and the same with nothing else."""
    logits = torch.full((5001,), math.log(1e-9))
    logits[3] = 0.0
    uniform = torch.rand(2000, LEVELS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert bool((next_tokens(logits.expand(2000, -1), uniform, Sampling()) == 3).all())
    logits[3] = -math.inf
    tokens = next_tokens(logits.expand(2000, -1), uniform, Sampling())
    assert len(tokens.unique()) == pytest.approx(5000 * -math.expm1(-2000 / 5000), rel=0.05)
    assert float(tokens.double().mean()) == pytest.approx(2500, rel=0.03)


def test_input_is_left_as_it_is() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(4))
    before, uniform = logits.clone(), torch.full((4, LEVELS), 0.5, dtype=torch.float64)
    for sampling in (Sampling(), Sampling(temperature=0.5, top_p=0.5), Sampling(temperature=0)):
        next_tokens(logits, uniform, sampling)
        assert torch.equal(logits, before)
