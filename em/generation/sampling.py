"""How the next token is chosen: temperature, top-p, and keyed random numbers for each token."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from em.errors import ConfigError

LEVELS = 4  # random numbers for each token
TINY = 1e-30  # a lower temperature than this is as good as this one
FIRST_LIKELIEST = 64  # tokens that top_p looks at first


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
    10 000 drawn tokens change with the batch size, here 1 in 400 000. Probabilities are float32, whose
    rounding is far below that of the logits; below the first level, where they are few, float64.

    Args:
        logits_BV: of the last position, any dtype.
        uniform_BL: float64 in [0, 1), one for each level, on the same device.

    Returns:
        Token ids, shape (B,); -1 in rows whose logits are not finite.
    """
    if sampling.temperature == 0:
        token_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        # Rows of -inf alone and rows with +inf or NaN have no largest finite logit.
        return token_B1.masked_fill(~logits_BV.gather(1, token_B1).isfinite(), -1)[:, 0]
    probs_BV = _probabilities(logits_BV, sampling.temperature)
    broken_B = probs_BV[:, 0].isnan()  # then the whole row is
    if sampling.top_p < 1:
        probs_BV = _nucleus(probs_BV, sampling.top_p)
    return _drawn(probs_BV, uniform_BL).masked_fill(broken_B, -1)


def _probabilities(logits_BV: Tensor, temperature: float) -> Tensor:
    scaled_BV = logits_BV.float()
    if temperature != 1:
        # The difference before the division: a tiny temperature cannot overflow, nor be 0 in float32.
        scaled_BV = (scaled_BV - scaled_BV.amax(dim=-1, keepdim=True)).div_(max(temperature, TINY))
    return scaled_BV.softmax(dim=-1)


def _drawn(probs_BV: Tensor, uniform_BL: Tensor) -> Tensor:
    """A token of each row; only the branch that is taken is padded to its full width."""
    size, device = probs_BV.shape[1], probs_BV.device
    branches = next(n for n in range(1, size + 1) if n**LEVELS >= size)
    width = branches ** (LEVELS - 1)
    token_B = _branch(_sums(probs_BV, branches, width), uniform_BL[:, 0])
    column_BX = token_B[:, None] * width + torch.arange(width, device=device)
    rest_BX = probs_BV.gather(1, column_BX.clamp(max=size - 1)).double().masked_fill_(column_BX >= size, 0)
    rows_B = torch.arange(len(probs_BV), device=device)
    for level in range(1, LEVELS):
        rest_BNX = rest_BX.view(len(rows_B), branches, -1)
        branch_B = _branch(rest_BNX.sum(dim=-1), uniform_BL[:, level])
        token_B = token_B * branches + branch_B
        rest_BX = rest_BNX[rows_B, branch_B]
    return token_B


def _sums(probs_BV: Tensor, branches: int, width: int) -> Tensor:
    """Probability (B, N) of each branch of the first level, of which the last ones may be short or empty."""
    whole, size = probs_BV.shape[1] // width, probs_BV.shape[1]
    sums_BN = probs_BV.new_zeros(len(probs_BV), branches, dtype=torch.float64)
    sums_BN[:, :whole] = probs_BV[:, : whole * width].unflatten(1, (whole, width)).sum(dim=-1)
    if whole * width < size:
        sums_BN[:, whole] = probs_BV[:, whole * width :].sum(dim=-1)
    return sums_BN


def _branch(weights_BN: Tensor, uniform_B: Tensor) -> Tensor:
    cumulative_BN = weights_BN.cumsum(dim=-1)
    total_B = cumulative_BN[:, -1]
    # Rounding must not reach the total, past which nothing lies.
    below_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    target_B = torch.minimum(uniform_B * total_B, below_B)
    branch_B = torch.searchsorted(cumulative_BN, target_B[:, None], right=True)[:, 0]
    return branch_B.clamp(max=weights_BN.shape[1] - 1)  # rows that are not numbers


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the fewest likeliest tokens that hold `top_p`; of equal ones the first come first."""
    least_B1, ties_B1 = _least(probs_BV, top_p)
    tied_BV = probs_BV == least_B1
    if bool((tied_BV.sum(dim=-1, keepdim=True) > ties_B1).any()):
        tied_BV &= tied_BV.cumsum(dim=-1) <= ties_B1
    return probs_BV.masked_fill(~(tied_BV | (probs_BV > least_B1)), 0)


def _least(probs_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probability of the last token that is kept, and how many of equal ones are, (B, 1) each.

    Only as many of the likeliest tokens are ordered as the rows need, which is mostly few.
    """
    rows, size = torch.arange(len(probs_BV), device=probs_BV.device), probs_BV.shape[1]
    least_B1 = probs_BV.new_empty(len(probs_BV), 1)
    ties_B1 = torch.empty_like(least_B1, dtype=torch.long)
    count, open_BV = min(FIRST_LIKELIEST, size), probs_BV
    while len(rows):
        likely_BK = open_BV.topk(count, dim=-1).values
        before_BK = likely_BK.double().cumsum(dim=-1) - likely_BK
        kept_BK = before_BK < top_p * open_BV.sum(dim=-1, keepdim=True)
        kept_BK[:, 0] = True
        last_B1 = kept_BK.sum(dim=-1, keepdim=True) - 1
        least_B1[rows] = likely_BK.gather(1, last_B1)
        ties_B1[rows] = (kept_BK & (likely_BK == least_B1[rows])).sum(dim=-1, keepdim=True)
        more_B = kept_BK[:, -1] if count < size else torch.zeros_like(kept_BK[:, -1])
        rows, open_BV, count = rows[more_B], open_BV[more_B], min(8 * count, size)
    return least_B1, ties_B1


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
