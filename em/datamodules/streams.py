"""Infinite example streams whose order is a pure function of (seed, purpose, position)."""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from em.datamodules.rows import MicroBatch, collate
from em.datamodules.sources import Example
from em.hooks import generator_for


class Stream:
    """Positions 0, 1, 2, … mapped to example indices, without end and without state.

    Without weights every example comes once an epoch. With weights, each block of one epoch's length
    holds an exact share of every source (largest remainder), in keyed order; a source that runs out
    starts its next permutation.

    Args:
        sizes: number of examples of each source; sources lie one after another in the index space.
        weights: share of each source, or None.
        seed, purpose: the key of the order.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int, purpose: str):
        self.epoch_length = sum(sizes)
        self._key = (seed, purpose)
        if weights is None:
            sizes, shares = [self.epoch_length], [self.epoch_length]
        else:
            shares = _largest_remainder(weights, self.epoch_length)
        self._sizes, self.shares = list(sizes), shares
        self._offsets = np.cumsum([0, *self._sizes[:-1]])
        self._block = functools.lru_cache(maxsize=4)(self._make_block)

    def __getitem__(self, position: int) -> int:
        block, within = divmod(position, self.epoch_length)
        return int(self._block(block)[within])

    def _make_block(self, block: int) -> np.ndarray:
        parts = []
        for source, (size, share) in enumerate(zip(self._sizes, self.shares, strict=True)):
            counts = np.arange(block * share, (block + 1) * share)
            picked = np.empty(share, dtype=np.int64)
            for epoch in np.unique(counts // size):
                order = self._permutation("order", source, int(epoch), size)
                here = counts // size == epoch
                picked[here] = order[counts[here] % size]
            parts.append(picked + self._offsets[source])
        together = np.concatenate(parts)
        if len(parts) == 1:
            return together
        return together[self._permutation("mix", 0, block, len(together))]

    def _permutation(self, what: str, source: int, epoch: int, size: int) -> np.ndarray:
        generator = generator_for(*self._key, what, source, epoch)
        return torch.randperm(size, generator=generator).numpy()


def _largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    exact = np.asarray(weights, dtype=float) / sum(weights) * total
    shares = np.floor(exact).astype(int)
    for index in np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]:
        shares[index] += 1
    return [int(share) for share in shares]


class Windows:
    """The examples of each optimizer step of one stream, and their split into micro-batches.

    Args:
        stream: the order of examples.
        examples: what its indices mean.
        size: examples per optimizer step.
        total: examples after which the stream ends (the last window may be short), or None.
        buckets: this many steps are sorted by length together; 1 sorts only within a step, which leaves
            every gradient what it was.
        seed, purpose: key of the order of steps within a bucket.
    """

    def __init__(
        self,
        stream: Stream,
        examples: Sequence[Example],
        size: int,
        total: int | None = None,
        buckets: int = 1,
        seed: int = 0,
        purpose: str = "windows",
    ):
        self._stream, self._examples, self._size, self._total = stream, examples, size, total
        self._buckets, self._key = buckets, (seed, purpose)

    def indices(self, step: int) -> list[int]:
        """Example indices of a step, shortest first."""
        first = step - step % self._buckets
        begin, end = first * self._size, (first + self._buckets) * self._size
        if self._total is not None:
            end = min(end, self._total)
        picked = [self._stream[position] for position in range(begin, end)]
        picked.sort(key=lambda index: (len(self._examples[index].ids), index))
        if self._buckets == 1:
            return picked
        windows = [picked[at : at + self._size] for at in range(0, len(picked), self._size)]
        order = torch.randperm(len(windows), generator=generator_for(*self._key, first)).tolist()
        # A short last window stays last, whatever the order of the full ones.
        order.sort(key=lambda window: len(windows[window]) < self._size)
        return windows[order[step - first]]

    def group(self, step: int, index: int, count: int) -> list[int]:
        """The `index`-th of `count` near-equal groups of a step; may be empty in a short window."""
        groups = np.array_split(np.asarray(self.indices(step), dtype=np.int64), count)
        return [int(value) for value in groups[index]]


class MicroBatches(torch.utils.data.Dataset[MicroBatch]):
    """All micro-batches of a run for one process, as a pure function of their number.

    Args:
        sft, kl: windows of the two streams with the examples behind them.
        steps: optimizer steps of the run.
        accumulate: micro-batches per step and process.
        rank, world_size: this process.
        kl_everywhere: KL counts at all real positions, not only where an answer token is predicted.
        pad: id of the padding token.
    """

    def __init__(
        self,
        sft: tuple[Windows, Sequence[Example]],
        kl: tuple[Windows, Sequence[Example]] | None,
        steps: int,
        accumulate: int,
        rank: int,
        world_size: int,
        kl_everywhere: bool,
        pad: int,
    ):
        self._sft, self._kl, self._steps, self._accumulate = sft, kl, steps, accumulate
        self._rank, self._world_size, self._pad = rank, world_size, pad
        self._kl_everywhere = kl_everywhere

    def __len__(self) -> int:
        return self._steps * self._accumulate

    def __getitem__(self, number: int) -> MicroBatch:
        step, micro = divmod(number, self._accumulate)
        # Neighbouring groups have like lengths: processes that run at the same time get equal work.
        group, count = micro * self._world_size + self._rank, self._accumulate * self._world_size
        windows, examples = self._sft
        sft = collate(examples, windows.group(step, group, count), self._pad)
        sft_tokens = sum(examples[index].targets for index in windows.indices(step))
        if self._kl is None:
            return MicroBatch(sft, None, sft_tokens, 0, step, micro)
        windows, examples = self._kl
        kl = collate(examples, windows.group(step, group, count), self._pad)
        counted = [examples[index] for index in windows.indices(step)]
        kl_tokens = sum(len(e.ids) if self._kl_everywhere else e.targets for e in counted)
        return MicroBatch(sft, kl, sft_tokens, kl_tokens, step, micro)
