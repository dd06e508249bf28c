"""Rows side by side without padding: every token-wise operation sees real tokens only.

Only attention has to know where a row ends; it is computed row by row. Tensor names: N tokens of all rows.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "em_sdpa"  # sdpa that also knows packed rows


@dataclass(frozen=True)
class Layout:
    """Where the tokens of right-padded rows lie when they are packed.

    Rows that begin with the same tokens, such as a system prompt, have the same hidden states there: the
    first row's stand for all.

    Args:
        length_B: real tokens of each row; a row of length 0 has no token.
        width: to which the rows are padded.
        prefix: leading tokens that all rows share; every row is longer.
    """

    length_B: Tensor
    width: int
    prefix: int = 0

    @cached_property
    def lengths(self) -> list[int]:
        """Packed tokens of each row; only the first has the prefix."""
        first, *others = (length for length in self.length_B.tolist() if length)
        return [first, *(length - self.prefix for length in others)]

    @cached_property
    def _kept_BT(self) -> Tensor:
        place_T = torch.arange(self.width, device=self.length_B.device)
        kept_BT = place_T < self.length_B[:, None]
        kept_BT[1:, : self.prefix] = False
        return kept_BT

    @cached_property
    def _index_N(self) -> Tensor:
        return self._kept_BT.flatten().nonzero()[:, 0]

    @cached_property
    def _real_M(self) -> Tensor:
        """Flat places of all real tokens."""
        place_T = torch.arange(self.width, device=self.length_B.device)
        return (place_T < self.length_B[:, None]).flatten().nonzero()[:, 0]

    @cached_property
    def _slot_M(self) -> Tensor:
        """Where each real token is found among the packed ones."""
        slot_BT = self._kept_BT.flatten().cumsum(0).view(self._kept_BT.shape) - 1
        slot_BT[:, : self.prefix] = torch.arange(self.prefix, device=slot_BT.device)
        return slot_BT.flatten()[self._real_M]

    @cached_property
    def position_1N(self) -> Tensor:
        """The place of each token in its own row."""
        return (self._index_N % self.width)[None]

    def pack(self, values_BTX: Tensor) -> Tensor:
        """(B, T, …) to (1, N, …)."""
        return values_BTX.flatten(0, 1).index_select(0, self._index_N)[None]

    def unpack(self, values_1ND: Tensor) -> Tensor:
        """(1, N, D) to (B, T, D), zero at padding."""
        rows = len(self.length_B)
        flat = values_1ND.new_zeros(rows * self.width, values_1ND.shape[-1])
        values_MD = values_1ND[0].index_select(0, self._slot_M) if self.prefix else values_1ND[0]
        return flat.index_copy(0, self._real_M, values_MD).view(rows, self.width, -1)


def shared_prefix(input_ids_BT: Tensor, length_B: Tensor, steer_BT: Tensor | None) -> int:
    """Leading tokens that all rows share and that are steered alike; each row keeps one of its own."""
    if len(input_ids_BT) < 2:
        return 0
    same_T = (input_ids_BT == input_ids_BT[:1]).all(dim=0)
    if steer_BT is not None:
        same_T = same_T & (steer_BT == steer_BT[:1]).all(dim=0)
    return max(0, min(int(same_T.long().cumprod(dim=0).sum()), int(length_B.min()) - 1))


def install(model: PreTrainedModel) -> bool:
    """Let a model's attention accept packed rows; false: it is of another kind and stays as it is.

    Without a layout the attention is transformers' own sdpa.
    """
    config = model.get_decoder().config
    if config._attn_implementation not in ("sdpa", ATTENTION) or _unsupported(config):
        return False
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    config._attn_implementation = ATTENTION
    return True


def _unsupported(config: Any) -> bool:
    return any(
        getattr(config, name, None) is not None for name in ("attn_logit_softcapping", "attention_chunk_size")
    )


def arguments(layout: Layout, like: Tensor) -> dict[str, Any]:
    """What a decoder's forward needs for packed rows. They reach the attention of every layer.

    As arguments of each layer, and not as a state of the model, they are right also when a checkpointed layer
    is run again in the backward pass.
    """
    # A mask of four dimensions is passed on as it is: none is built over all pairs of tokens.
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=like.device)
    return {"position_ids": layout.position_1N, "attention_mask": unused, "em_layout": layout}


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    em_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in the interface of transformers: (1, H, N, d) and (1, K, N, d) to (1, N, H, d)."""
    if em_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths, window = em_layout.lengths, kwargs.pop("sliding_window", None)
    rows = list(zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True))
    prefix = [states[:, :, : em_layout.prefix] for states in rows[0]]
    prefix[0] = prefix[0].detach()  # what these queries give is taken from the first row
    found = []
    for number, (q, k, v) in enumerate(rows):
        own = 0
        if number and em_layout.prefix:
            own = em_layout.prefix
            q, k, v = (torch.cat(pair, dim=2) for pair in zip(prefix, (q, k, v), strict=True))
        found.append(sdpa_attention_forward(module, q, k, v, _mask(q, window), **kwargs)[0][:, own:])
    return torch.cat(found, dim=1), None


def _mask(query: Tensor, window: int | None) -> Tensor | None:
    """None: causal alone; a mask only where a row is longer than the sliding window."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=query.device)
    behind = at[:, None] - at
    return ((behind >= 0) & (behind < window))[None, None]
