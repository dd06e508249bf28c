"""Keys and values: those of a prompt, and those of the rows that are being written.

Every row ends at the same column, so that a pass writes one column; a row with less behind it begins later.
Tensor names carry their shape: B rows, T positions of prompts, H heads, S columns, D head width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from em.backbone import Backbone
from em.errors import GenerationError

CHUNK = 128  # columns that are reserved ahead

Past = list[tuple[Tensor, Tensor]]  # keys and values (H, S, D) of a prompt, layer by layer


def prompt_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache that keeps all of a prompt, also where the model's own would keep a window of it.

    Raises:
        GenerationError: a layer keeps a state of another kind, which padding would enter.
    """
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, DynamicLayer):
            raise GenerationError(
                f"{type(model).__name__}: layer {index} keeps a {type(layer).__name__}, not keys and values; "
                "answer with vLLM through an endpoint instead"
            )
    cache.layers = [DynamicLayer() for _ in cache.layers]
    return cache


def read_prompts(backbone: Backbone, prompts: Sequence[Sequence[int]]) -> list[Past]:
    """Keys and values of all but the last token of each prompt, in one pass.

    Rows are padded on the right, where causal attention keeps padding out of every real position.
    """
    lengths = [len(prompt) - 1 for prompt in prompts]
    width = max(lengths)
    if not width:  # prompts of one token
        return [[] for _ in prompts]
    ids = [[*prompt[:-1], *[0] * (width - length)] for prompt, length in zip(prompts, lengths, strict=True)]
    ids_BT = torch.tensor(ids, device=backbone.device)
    cache = prompt_cache(backbone.model)
    with backbone.steering_positions(torch.zeros_like(ids_BT, dtype=torch.bool)):
        backbone.decoder(input_ids=ids_BT, past_key_values=cache, use_cache=True)
    layers = cast(list[Any], cache.layers)
    return [
        [(layer.keys[at, :, :length], layer.values[at, :, :length]) for layer in layers]
        for at, length in enumerate(lengths)
    ]


class RowCache:
    """Keys and values of the rows that are being written, in rooms with columns to spare.

    Windows of attention are left to the model's masks; answers are rarely longer than a window.

    Args:
        size: most rows at once.
        ahead: columns that a row may still need; no more than `CHUNK` are reserved at once.

    Attributes:
        model_cache: for the model's passes, of one token for each row.
        used: the column that the next pass writes.
        starts: the first column of each row.
    """

    def __init__(self, model: PreTrainedModel, size: int, ahead: int):
        self.size, self.ahead, self._device = size, max(1, min(CHUNK, ahead)), model.device
        self.used, self.first, self.width = 0, 0, 0
        self.starts: list[int] = []
        self.model_cache = prompt_cache(model)
        self._rooms = [_Room(self) for _ in self.model_cache.layers]
        self.model_cache.layers = list(self._rooms)

    def place(self, past: Past, length: int, rows: Sequence[int]) -> None:
        """Let rows, new ones or in the place of others, begin with the first `length` tokens of a prompt.

        No prompt may be longer than that of a row before it.
        """
        if not self.starts:
            self.used = length
            self.width = self.used + self.ahead
        for row in rows:
            self.starts[row : row + 1] = [self.used - length]
        rows_B = torch.tensor(rows, device=self._device)
        for at, room in enumerate(self._rooms):
            room.place(rows_B, past[at] if length else ())

    def keep(self, sources: Sequence[int], targets: Sequence[int], count: int) -> None:
        """Move rows into the places of others, and forget all but the first `count`."""
        if targets:
            source_B, target_B = (torch.tensor(rows, device=self._device) for rows in (sources, targets))
            for room in self._rooms:
                room.move(source_B, target_B)
        for source, target in zip(sources, targets, strict=True):
            self.starts[target] = self.starts[source]
        del self.starts[count:]

    def make_ready(self) -> None:
        """Before each pass: see to it that there is a column to write."""
        self.first = min(self.starts)
        if self.used < self.width:
            return
        shift, self.used = self.first, self.used - self.first
        self.width = self.used + self.ahead
        for room in self._rooms:
            room.shift(shift)
        self.starts = [start - shift for start in self.starts]
        self.first = 0


class _Room(DynamicLayer):
    """Keys and values (B, H, S, D) of one layer, written in place; they are copied once in `ahead` passes."""

    def __init__(self, rows: RowCache):
        super().__init__()
        self._rows = rows
        self._rooms: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        first, used, count = self._rows.first, self._rows.used, len(key_states)
        states = key_states, value_states
        for room, new_BH1D in zip(self._reserved(states), states, strict=True):
            room[:count, :, used : used + 1] = new_BH1D
        keys, values = (room[:count, :, first : used + 1] for room in self._rooms)
        return keys, values

    def get_seq_length(self) -> int:
        return self._rows.used - self._rows.first

    def place(self, rows_B: Tensor, states: Sequence[Tensor]) -> None:
        used = self._rows.used
        for room in self._reserved(states):
            room[rows_B, :, :used] = 0  # what is masked is still multiplied by 0, and must not be NaN
        for room, past_HSD in zip(self._rooms, states, strict=False):
            room[rows_B, :, used - past_HSD.shape[1] : used] = past_HSD

    def move(self, source_B: Tensor, target_B: Tensor) -> None:
        shown = slice(self._rows.first, self._rows.used)
        for room in self._rooms:
            room[target_B, :, shown] = room[source_B, :, shown]

    def shift(self, by: int) -> None:
        for at, old in enumerate(self._rooms):
            kept = old[:, :, by:]  # all of it is in use: there was no column to write
            self._rooms[at] = new = self._room(old)
            new[:, :, : kept.shape[2]] = kept

    def _reserved(self, like: Sequence[Tensor]) -> list[Tensor]:
        self._rooms = self._rooms or [self._room(one) for one in like]
        return self._rooms

    def _room(self, like: Tensor) -> Tensor:
        return like.new_empty(self._rows.size, like.shape[-3], self._rows.width, like.shape[-1])
