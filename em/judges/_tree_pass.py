"""One forward pass over a prompt and all places of a trie below it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from em.backbone import Backbone
from em.errors import JudgeError
from em.judges._trie import Reading, Trie

TOLERANCE = 0.1  # of the spread of logits, between the tree and a plain pass; bfloat16 is off by 0.02


class TreePass:
    """Reads what a model would say to a prompt at every place of a trie at once.

    The places stand behind the padded prompts as if they were tokens; each attends to its prompt and to the
    places above it alone, and has the position that it would have in a reply.

    Raises:
        JudgeError: the model has layers that cannot be read so, such as linear attention.
    """

    def __init__(self, backbone: Backbone, trie: Trie, name: str):
        self.backbone, self.trie, self.name = backbone, trie, name
        config = backbone.model.config.get_text_config()
        self.kinds = sorted(set(getattr(config, "layer_types", None) or []))
        self.window: int | None = getattr(config, "sliding_window", None)
        if set(self.kinds) - {"full_attention", "sliding_attention"}:
            raise JudgeError(
                f"{name}: a model with layers of the kind {', '.join(self.kinds)} cannot be read as a judge; "
                "use one whose layers are all attention"
            )

    @torch.inference_mode()
    def read(self, prompts: Sequence[list[int]]) -> list[Reading]:
        """One reading for each prompt.

        Raises:
            JudgeError: the model's predictions are not finite.
        """
        hidden_BTD, width = self._hidden(prompts)
        readings = []
        for row_TD, prompt in zip(hidden_BTD, prompts, strict=True):
            # One row at a time: the logits of a whole batch over a large vocabulary take gigabytes.
            places_ND = torch.cat([row_TD[len(prompt) - 1 : len(prompt)], row_TD[width:]])
            reading = self.trie.read(self.backbone.logits(places_ND))
            if not bool(reading.numbers.isfinite().all()):
                raise JudgeError(
                    f"{self.name}: its predictions are not finite numbers; set dtype to float32 or bfloat16"
                )
            readings.append(reading)
        return readings

    @torch.inference_mode()
    def check(self, prompt: list[int]) -> None:
        """Compare the deepest place with a plain forward pass.

        Raises:
            JudgeError: they differ, so that this model cannot be read in one pass.
        """
        deepest = max(range(len(self.trie.depths)), key=lambda at: self.trie.depths[at])
        ids_BT = torch.tensor([[*prompt, *self.trie.path(deepest + 1)]], device=self.backbone.device)
        plain_V = self.backbone.logits(self.backbone.trunk(ids_BT)[0, -1:])[0]
        hidden_BTD, width = self._hidden([prompt])
        tree_V = self.backbone.logits(hidden_BTD[0, width + deepest][None])[0]
        if not bool((plain_V - tree_V).std() <= TOLERANCE * plain_V.std()):
            raise JudgeError(
                f"{self.name}: its attention does not take a mask of its own, so its probabilities cannot "
                "be read; use another model as judge"
            )

    def _hidden(self, prompts: Sequence[list[int]]) -> tuple[Tensor, int]:
        """Final hidden states of the padded prompts and, from the returned column on, of the places."""
        trie, width, device = self.trie, max(map(len, prompts)), self.backbone.device
        ids_BT = torch.zeros(len(prompts), width + len(trie.tokens), dtype=torch.long)
        places_BT = torch.arange(width).repeat(len(prompts), 1)
        lengths_B = torch.tensor([len(prompt) for prompt in prompts])
        for row, prompt in enumerate(prompts):
            ids_BT[row, : len(prompt)] = torch.tensor(prompt)
        ids_BT[:, width:] = torch.tensor(trie.tokens)
        depths_BM = lengths_B[:, None] + torch.tensor(trie.depths) - 1
        places_BT = torch.cat([places_BT, depths_BM], dim=1)
        allowed_BTT = self._allowed(lengths_B, width)
        output = self.backbone.decoder(
            input_ids=ids_BT.to(device),
            attention_mask=self._masks(allowed_BTT, places_BT),
            position_ids=places_BT.to(device),
            use_cache=False,
        )
        return output.last_hidden_state, width

    def _allowed(self, lengths_B: Tensor, width: int) -> Tensor:
        """Which columns each row of the attention sees."""
        total = width + len(self.trie.tokens)
        allowed_BTT = torch.ones(total, total, dtype=torch.bool).tril().repeat(len(lengths_B), 1, 1)
        allowed_BTT[:, width:, :width] = (torch.arange(width) < lengths_B[:, None])[:, None]
        allowed_BTT[:, width:, width:] = self.trie.ancestors()
        return allowed_BTT

    def _masks(self, allowed_BTT: Tensor, places_BT: Tensor) -> Any:
        """Additive masks, by kind of layer where the model has several kinds."""
        dtype, device = self.backbone.head.weight.dtype, self.backbone.device
        near_BTT = places_BT[:, :, None] - places_BT[:, None, :]
        masks: dict[str, Tensor] = {}
        for kind in self.kinds or ["sliding_attention" if self.window else "full_attention"]:
            seen_BTT = allowed_BTT
            if kind == "sliding_attention" and self.window is not None:
                seen_BTT = allowed_BTT & (near_BTT < self.window)
            mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype, device=device)
            masks[kind] = mask_BTT.masked_fill_(~seen_BTT.to(device), torch.finfo(dtype).min)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))
