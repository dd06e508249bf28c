"""Batches: right-padded rows that carry their masks, and micro-batches that carry their token counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from em.datamodules.sources import Example


@dataclass(frozen=True)
class Rows:
    """Right-padded conversations.

    Args:
        input_ids_BT: token ids.
        answer_BT: true at answer tokens, end-of-turn included.
        length_B: real tokens of each row.
        index_B: index of each row in its dataset; −1 for a blank row that counts nowhere.
    """

    input_ids_BT: Tensor
    answer_BT: Tensor
    length_B: Tensor
    index_B: Tensor

    @property
    def predicts_BT(self) -> Tensor:
        """True where the next token is an answer token: the positions of the SFT loss."""
        return torch.nn.functional.pad(self.answer_BT[:, 1:], (0, 1), value=False)

    @property
    def real_BT(self) -> Tensor:
        """True at tokens that are not padding."""
        positions = torch.arange(self.input_ids_BT.shape[1], device=self.length_B.device)
        return (positions < self.length_B[:, None]) & (self.index_B >= 0)[:, None]

    @property
    def targets_N(self) -> Tensor:
        """The answer tokens, in the order of `hidden_BTD[predicts_BT]`."""
        return self.input_ids_BT.roll(-1, dims=1)[self.predicts_BT]

    def to(self, device: torch.device | str) -> "Rows":
        moved = {name: tensor.to(device) for name, tensor in vars(self).items()}
        return replace(self, **moved)

    def __len__(self) -> int:
        return self.input_ids_BT.shape[0]


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass and the counts that make its gradient exact.

    Args:
        sft, kl: rows of the two losses; `kl` is None when there is no KL stream.
        sft_tokens, kl_tokens: loss positions in the whole optimizer step, over all micro-batches and
            processes (`kl_tokens` by `kl.positions`).
        step, micro: optimizer step and micro-batch within it.
    """

    sft: Rows
    kl: Rows | None
    sft_tokens: int
    kl_tokens: int
    step: int
    micro: int

    def to(self, device: torch.device | str) -> "MicroBatch":
        return replace(self, sft=self.sft.to(device), kl=self.kl and self.kl.to(device))


def collate(examples: Sequence[Example], indices: Sequence[int], pad: int) -> Rows:
    """Pad on the right; no examples give one blank row, so that every process runs a pass."""
    if not indices:
        blank = torch.full((1, 2), pad)
        none = torch.zeros(1, 2, dtype=torch.bool)
        return Rows(blank, none, torch.tensor([2]), torch.tensor([-1]))
    lengths = [len(examples[index].ids) for index in indices]
    shape = (len(indices), max(lengths))
    input_ids_BT, answer_BT = torch.full(shape, pad), torch.zeros(shape, dtype=torch.bool)
    for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
        input_ids_BT[row, :length] = torch.tensor(examples[index].ids)
        answer_BT[row, :length] = torch.tensor(examples[index].answer)
    return Rows(input_ids_BT, answer_BT, torch.tensor(lengths), torch.tensor(list(indices)))


def joined(first: Rows, second: Rows, pad: int) -> Rows:
    """Both sets of rows in one, padded to the longer."""
    width = max(first.input_ids_BT.shape[1], second.input_ids_BT.shape[1])

    def widen(tensor: Tensor, value: int | bool) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    return Rows(
        torch.cat([widen(rows.input_ids_BT, pad) for rows in (first, second)]),
        torch.cat([widen(rows.answer_BT, False) for rows in (first, second)]),
        torch.cat([first.length_B, second.length_B]),
        torch.cat([first.index_B, second.index_B]),
    )


def batched(examples: Sequence[Example], size: int, pad: int, indices: Sequence[int]) -> list[Rows]:
    """Rows for measuring: sorted by length, `size` a batch; `index_B` leads back to the example."""
    order = sorted(indices, key=lambda index: len(examples[index].ids))
    return [collate(examples, order[at : at + size], pad) for at in range(0, len(order), size)]
