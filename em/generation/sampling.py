"""How the next token is chosen: temperature, top-p, and keyed random numbers for each token."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from em.errors import ConfigError

LEVELS = 4  # random numbers for each token


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling (paper: temperature 1, top_p 1, 600 tokens).

    Args:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_p: sample among the fewest tokens that hold this probability together.
        max_tokens: an answer is cut off after so many.
        stop: texts at which an answer ends; they are not part of it.
        seed: key of the random numbers.

    Raises:
        ConfigError: a value is out of range; all problems at once.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 600
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, list):  # as YAML and JSON give it
            object.__setattr__(self, "stop", tuple(self.stop))
        problems = []
        if not _number(self.temperature) or self.temperature < 0:
            problems.append(f"temperature: expected a number from 0 on, got {self.temperature!r}")
        if not _number(self.top_p) or not 0 < self.top_p <= 1:
            problems.append(f"top_p: expected a number above 0, at most 1, got {self.top_p!r}")
        if not _whole(self.max_tokens) or self.max_tokens < 1:
            problems.append(f"max_tokens: expected a whole number from 1 on, got {self.max_tokens!r}")
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            problems.append(f"stop: expected a list of texts that are not empty, got {self.stop!r}")
        if not _whole(self.seed):
            problems.append(f"seed: expected a whole number, got {self.seed!r}")
        if problems:
            raise ConfigError(problems)


def next_tokens(logits_BV: Tensor, uniform_BL: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row, drawn down a tree over the vocabulary.

    At each of the `LEVELS` the first branch is taken whose cumulative probability, among its sisters, exceeds
    the level's random number. One cumulative sum over the whole vocabulary would do the same with one number,
    but its rounding (1e-6 between batch sizes) is wider than most of the unlikely tokens: with SmolLM2 9 in
    10 000 drawn tokens change with the batch size, here 1 in 400 000.

    Args:
        logits_BV: of the last position, any dtype.
        uniform_BL: float64 in [0, 1), one for each level, on the same device.

    Returns:
        Token ids, shape (B,); -1 in rows whose logits are not finite.
    """
    # Rows of -inf alone and rows with +inf or NaN have no largest finite logit.
    top_B1 = logits_BV.amax(dim=-1, keepdim=True)
    broken_B = ~top_B1[:, 0].isfinite()
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1).masked_fill(broken_B, -1)
    # The difference before the division: a tiny temperature cannot overflow.
    weights_BV = logits_BV.double().sub_(top_B1.double()).div_(sampling.temperature).exp_()
    if sampling.top_p < 1:
        weights_BV = _nucleus(weights_BV, sampling.top_p)
    return _drawn(weights_BV, uniform_BL).masked_fill(broken_B, -1)


def _drawn(weights_BV: Tensor, uniform_BL: Tensor) -> Tensor:
    count, size = len(weights_BV), weights_BV.shape[1]
    branches = next(n for n in range(1, size + 1) if n**LEVELS >= size)
    rest_BX = torch.nn.functional.pad(weights_BV, (0, branches**LEVELS - size))
    rows_B = torch.arange(count, device=weights_BV.device)
    token_B = torch.zeros_like(rows_B)
    for level in range(LEVELS):
        rest_BNX = rest_BX.view(count, branches, -1)
        cumulative_BN = rest_BNX.sum(dim=-1).cumsum(dim=-1)
        total_B = cumulative_BN[:, -1]
        # Rounding must not reach the total, past which nothing lies.
        below_B = torch.nextafter(total_B, torch.zeros_like(total_B))
        target_B = torch.minimum(uniform_BL[:, level] * total_B, below_B)
        branch_B = torch.searchsorted(cumulative_BN, target_B[:, None], right=True)[:, 0]
        branch_B = branch_B.clamp(max=branches - 1)  # rows that are not numbers
        token_B = token_B * branches + branch_B
        rest_BX = rest_BNX[rows_B, branch_B]
    return token_B


def _nucleus(weights_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the fewest likeliest tokens that hold `top_p`; of equal ones the first come first."""
    ordered_BV, order_BV = weights_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = ordered_BV.cumsum(dim=-1) - ordered_BV
    kept_BV = before_BV < top_p * ordered_BV.sum(dim=-1, keepdim=True)
    kept_BV[:, 0] = True
    return torch.zeros_like(weights_BV).scatter_(1, order_BV, ordered_BV * kept_BV)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
