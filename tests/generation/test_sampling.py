import math
from typing import Any

import numpy as np
import pytest
import torch

from em.errors import ConfigError
from em.generation.sampling import Sampling, next_tokens

LOGITS = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()


def chosen(uniform: float, sampling: Sampling, logits: torch.Tensor = LOGITS) -> int:
    return int(next_tokens(logits[None], torch.tensor([uniform], dtype=torch.float64), sampling))


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
    ("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.59, 1), (0.61, 2), (0.91, 3), (1 - 2**-53, 3)]
)
def test_tokens_divide_the_unit_interval_in_the_order_of_the_vocabulary(uniform: float, token: int) -> None:
    assert chosen(uniform, Sampling()) == token


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    # At 0.5 the probabilities are squared: 0.25, 0.01, 0.09, 0.01 of 0.36.
    half = Sampling(temperature=0.5)
    assert [chosen(u, half) for u in (0.69, 0.70, 0.73, 0.96, 0.98)] == [0, 1, 2, 2, 3]
    assert {chosen(u, Sampling(temperature=0)) for u in (0.0, 0.5, 0.999)} == {0}
    assert chosen(0.999, Sampling(temperature=1e-300)) == 0


def test_top_p_keeps_the_fewest_tokens_that_hold_it() -> None:
    # 0.5 alone holds 0.5; 0.75 needs 0.5 and 0.3, which then divide the interval 5 : 3.
    assert {chosen(u, Sampling(top_p=0.5)) for u in (0.0, 0.999)} == {0}
    three = Sampling(top_p=0.75)
    assert [chosen(u, three) for u in (0.62, 0.63, 0.999)] == [0, 2, 2]
    # Of the two equally likely ones the first comes first.
    assert [chosen(u, Sampling(top_p=0.85)) for u in (0.54, 0.56, 0.999)] == [0, 1, 2]
    assert {chosen(u, Sampling(top_p=1e-12)) for u in (0.0, 0.999)} == {0}


def test_tokens_without_probability_are_never_taken() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    assert [chosen(u, Sampling(), logits) for u in (0.0, 0.5, 1 - 2**-53)] == [1, 3, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token_in_their_row_only(bad: float, temperature: float) -> None:
    logits = torch.tensor([[0.0, bad, 0.0], [0.0, 50.0, 0.0], [-math.inf] * 3])
    uniform = torch.full((3,), 0.5, dtype=torch.float64)
    assert next_tokens(logits, uniform, Sampling(temperature=temperature)).tolist() == [-1, 1, -1]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_frequencies_are_the_probabilities(top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens = next_tokens(logits.expand(20_000, -1), uniform, Sampling(top_p=top_p))
    shares = np.bincount(tokens.numpy(), minlength=50) / 20_000
    expected = logits.double().softmax(0).numpy()
    if top_p < 1:
        order = np.argsort(-expected)
        count = int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1
        expected[order[count:]] = 0
        expected /= expected.sum()
    assert np.abs(shares - expected).max() < 1e-4


def test_logits_of_low_precision_are_used_as_they_are() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    uniform = torch.linspace(0.01, 0.99, 8, dtype=torch.float64)
    assert torch.equal(
        next_tokens(logits, uniform, Sampling()), next_tokens(logits.double(), uniform, Sampling())
    )
