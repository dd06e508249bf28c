"""Keys and values of past tokens, with room reserved ahead."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from em.errors import GenerationError

CHUNK = 128


class _Growing(DynamicLayer):
    """`DynamicLayer` copies all keys and values at every token; this one only once in `CHUNK` tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._rooms: list[Tensor] = []
        self._used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._used = self._used, self._used + key_states.shape[2]
        if not self._rooms:
            self._rooms = [_room(states, self._used) for states in (key_states, value_states)]
        elif self._rooms[0].shape[2] < self._used:
            self._rooms = [_moved(room, start, self._used) for room in self._rooms]
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, start : self._used] = states
        return self._shown()

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rooms = [room[indices] for room in self._rooms]
        self._shown()

    def _shown(self) -> tuple[Tensor, Tensor]:
        keys, values = (room[:, :, : self._used] for room in self._rooms)
        self.keys, self.values = keys, values
        return keys, values


def _room(like: Tensor, needed: int) -> Tensor:
    rows, heads, _, width = like.shape
    return like.new_empty(rows, heads, (needed // CHUNK + 1) * CHUNK, width)


def _moved(old: Tensor, used: int, needed: int) -> Tensor:
    new = _room(old, needed)
    new[:, :, :used] = old[:, :, :used]
    return new


def fresh_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for the model's kinds of layers (full and sliding-window attention).

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
        if type(layer) is DynamicLayer:
            cache.layers[index] = _Growing()
    return cache


def select(cache: DynamicCache, rows: list[int], device: torch.device) -> Tensor:
    """Keep only some rows of the batch; returns their indices as a tensor."""
    index_B = torch.tensor(rows, device=device)
    cache.batch_select_indices(index_B)
    return index_B
