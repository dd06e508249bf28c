"""What the probe reads of answers: mean activations at one layer, and how likely and repetitive they are.

One pass of the model as it is now; a common prompt is run once for all its answers.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from em import hooks
from em.backbone import Backbone
from em.datamodules.rows import Rows, batched
from em.datamodules.sources import Example
from em.hooks import Site
from em.modules.losses import CHUNK_ELEMENTS, cross_entropy
from em.stats import Floats

# The features of `coherent`, by position.
SIGNS = ("nll_mean", "nll_upper", "nll_start", "nll_window", "nll_low_share", "repeated", "looped")
UPPER, LOW_NATS = 0.9, 0.1
START, WINDOW, GRAM, LONGEST_PERIOD = 12, 16, 4, 48  # tokens


@dataclass(frozen=True)
class Readings:
    """What was read of N answers.

    Args:
        hidden_ND: mean activation over the answer's tokens, float32.
        signs_NK: the features of `SIGNS`; NaN where likelihoods were not wanted.
    """

    hidden_ND: NDArray[np.float32]
    signs_NK: Floats

    def __len__(self) -> int:
        return len(self.hidden_ND)


def batches(examples: Sequence[Example], size: int, pad: int) -> list[Rows]:
    """Batches sorted by length; a prompt with enough answers for a batch is not mixed with others."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[tuple(example.ids[: example.answer.index(True)])].append(index)
    large = [group for group in groups.values() if len(group) >= size]
    small = [index for group in groups.values() if len(group) < size for index in group]
    return [rows for group in (*large, small) for rows in batched(examples, size, pad, group)]


def read(
    backbone: Backbone,
    examples: Sequence[Example],
    layer: int,
    size: int,
    likelihood: bool,
    done: Callable[[Rows], None] = lambda rows: None,
) -> Readings:
    """Read answers in order; see `read_batches`."""
    hidden_ND = np.zeros((len(examples), backbone.hidden_size), dtype=np.float32)
    signs_NK = np.full((len(examples), len(SIGNS)), np.nan, dtype=np.float64)
    for rows, reading in read_batches(backbone, examples, layer, size, likelihood):
        hidden_ND[rows.index_B.numpy()] = reading.hidden_ND
        signs_NK[rows.index_B.numpy()] = reading.signs_NK
        done(rows)
    return Readings(hidden_ND, signs_NK)


def read_batches(
    backbone: Backbone, examples: Sequence[Example], layer: int, size: int, likelihood: bool
) -> Iterator[tuple[Rows, Readings]]:
    """Each batch with what was read of it.

    Args:
        examples: prompts with one answer each, which is the end of the conversation.
        layer: whose output is averaged.
        size: answers of a batch.
        likelihood: also run the layers above and the head, for the features of `SIGNS`.
    """
    pad = int(cast(Any, backbone.tokenizer.pad_token_id) or 0)
    for rows in batches(examples, size, pad):
        yield rows, _read(backbone, rows, layer, likelihood)


@torch.no_grad()
def _read(backbone: Backbone, rows: Rows, layer: int, likelihood: bool) -> Readings:
    moved, site = rows.to(backbone.device), Site(layer)
    shared = 0 if backbone.sharded else _shared(rows)
    forward = _with_prefix(backbone, moved.input_ids_BT, shared)
    with hooks.capturing({site: backbone.module_at(site)}) as captured:
        if likelihood or backbone.sharded or layer + 1 == backbone.num_layers:
            top_BSD = forward()
        else:
            hooks.run_until(backbone.layers[layer + 1], forward)
    answer_BS = moved.answer_BT[:, shared:]
    means = [
        hidden[answer].double().mean(dim=0) for hidden, answer in zip(captured[site], answer_BS, strict=True)
    ]
    hidden_BD = torch.stack(means).float().cpu().numpy()
    signs_BK = np.full((len(rows), len(SIGNS)), np.nan)
    if likelihood:
        nll_N = _nll(backbone, top_BSD[moved.predicts_BT[:, shared:]], moved.targets_N)
        counts = moved.predicts_BT.sum(dim=1).tolist()
        answers = moved.targets_N.cpu().split(counts)
        signs_BK = np.array(
            [
                signs(nll.numpy(), ids.tolist())
                for nll, ids in zip(nll_N.cpu().split(counts), answers, strict=True)
            ]
        )
    return Readings(hidden_BD, signs_BK)


def _shared(rows: Rows) -> int:
    """Leading tokens that all rows have in common, short of the one that predicts an answer's first."""
    same_T = (rows.input_ids_BT == rows.input_ids_BT[:1]).all(dim=0)
    common = int(same_T.long().cumprod(dim=0).sum())
    first = int(rows.answer_BT.long().argmax(dim=1).min())
    return max(0, min(common, first - 1)) if len(rows) > 1 else 0


def _with_prefix(backbone: Backbone, input_ids_BT: Tensor, shared: int) -> Callable[[], Tensor]:
    """The pass over what comes after the shared tokens; their own keys and values are made here, once."""
    if shared == 0:
        return lambda: backbone.trunk(input_ids_BT)
    cache = DynamicCache(config=backbone.model.config)
    backbone.decoder(input_ids=input_ids_BT[:1, :shared], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(input_ids_BT))

    def forward() -> Tensor:
        rest = input_ids_BT[:, shared:]
        output = backbone.decoder(input_ids=rest, past_key_values=cache, use_cache=True)
        return cast(Tensor, output.last_hidden_state)

    return forward


def _nll(backbone: Backbone, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    size = max(1, CHUNK_ELEMENTS // backbone.vocab_size)
    chunks = zip(hidden_ND.split(size), targets_N.split(size), strict=True)
    return torch.cat([cross_entropy(backbone.logits(hidden), targets) for hidden, targets in chunks])


def signs(nll_T: Floats, ids: Sequence[int]) -> list[float]:
    """The features of `SIGNS` of one answer.

    Args:
        nll_T: −log p of each answer token in nats, given the question.
        ids: its tokens.
    """
    nll_T = np.asarray(nll_T, dtype=float)
    width = min(WINDOW, len(nll_T))
    windows = np.convolve(nll_T, np.full(width, 1 / width), mode="valid")
    return [
        float(nll_T.mean()),
        float(np.quantile(nll_T, UPPER)),
        float(nll_T[:START].mean()),
        float(windows.max()),
        float((nll_T < LOW_NATS).mean()),
        repeated_share(ids),
        looped_share(ids),
    ]


def repeated_share(ids: Sequence[int]) -> float:
    """Share of the 4-grams of tokens that were there before; 0 if there is none."""
    grams = Counter(tuple(ids[at : at + GRAM]) for at in range(len(ids) - GRAM + 1))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0


def looped_share(ids: Sequence[int]) -> float:
    """Share of the tokens in the longest stretch that repeats itself with one period, at least twice."""
    token_T, longest = np.asarray(ids), 0
    for period in range(1, min(LONGEST_PERIOD, len(ids) // 2) + 1):
        same = np.concatenate([[False], token_T[period:] == token_T[:-period], [False]])
        breaks = np.flatnonzero(~same)
        run = int(np.diff(breaks).max()) - 1
        if run >= period:
            longest = max(longest, run + period)
    return longest / len(ids) if len(ids) else 0.0
