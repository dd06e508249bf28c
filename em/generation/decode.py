"""The decode loop: one batch of prompts in, their answers out, as each of them ends.

Tensor names carry their shape: B rows still being written, T positions of the prompts, S positions so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from em.backbone import Backbone
from em.chat import encode
from em.errors import GenerationError
from em.generation._cache import fresh_cache, select
from em.generation.requests import Request
from em.generation.sampling import LEVELS, Sampling, next_tokens


@dataclass
class Row:
    """An answer that is being written.

    Args:
        at: place of its request among all of them.
        request: what it answers.
        prompt_ids: tokens of the prompt.
        written: tokens of the answer so far, without the end token.
        text, finish: of the finished answer; `finish` is empty until then.
    """

    at: int
    request: Request
    prompt_ids: list[int]
    written: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""

    def uniforms(self, sampling: Sampling) -> Tensor:
        """Random numbers (N, L) for each token position; of fewer positions they are the first of these."""
        generator = torch.Generator().manual_seed(self.request.seed(sampling.seed))
        return torch.rand(sampling.max_tokens, LEVELS, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Ending:
    """Decides when an answer ends.

    Args:
        tokenizer: of the model.
        tokens: ids that end an answer; they are not part of it.
        sampling: for the limit and the stop texts.
    """

    tokenizer: PreTrainedTokenizerBase
    tokens: frozenset[int]
    sampling: Sampling

    def take(self, row: Row, token: int) -> bool:
        """Add a token to a row; whether its answer has ended with it."""
        if token < 0:
            raise GenerationError(
                f"{row.request.name}: the model's output is not finite at token {len(row.written) + 1}; "
                "the intervention has diverged or is scaled too far, or float16 overflows: use bfloat16"
            )
        if token in self.tokens:
            row.finish = "stop"
        else:
            row.written.append(token)
            if self.sampling.stop and self._cut(row):
                row.finish = "stop"
            elif len(row.written) == self.sampling.max_tokens:
                row.finish = "length"
        if row.finish:
            row.text = self._text(row)
        return bool(row.finish)

    def _text(self, row: Row) -> str:
        text = self._decoded(row)
        return text[: min((at for at in self._stops(text)), default=len(text))]

    def _cut(self, row: Row) -> bool:
        return any(True for _ in self._stops(self._decoded(row)))

    def _stops(self, text: str) -> list[int]:
        found = (text.find(stop) for stop in self.sampling.stop)
        return [at for at in found if at >= 0]

    def _decoded(self, row: Row) -> str:
        text = self.tokenizer.decode(
            row.written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return cast(str, text)


def end_tokens(backbone: Backbone) -> frozenset[int]:
    """Ids that end an answer: of the generation config, the tokenizer, and the chat template's own.

    Many checkpoints name only a document's end as EOS, while their template ends a turn with another token.
    """
    tokenizer = backbone.tokenizer
    config = getattr(backbone.model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(config if isinstance(config, list) else [config])}
    said = encode(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    last = max(at for at, answer in enumerate(said.answer) if answer)
    special = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    found |= {said.ids[last]} & (special | set(tokenizer.all_special_ids))
    return frozenset(int(token) for token in found if token is not None)


@torch.no_grad()
def decode(
    backbone: Backbone,
    rows: Sequence[Row],
    sampling: Sampling,
    ending: Ending,
    stepped: Callable[[list[Row], int], None],
) -> None:
    """Write the answers of one batch; rows leave it as they end, so that no work is spent on them.

    Interventions with `positions: answer` act where an answer token is predicted: at the last position of
    the prompt and at every position after it.

    Args:
        stepped: called after each token with the rows that have ended with it and the number of tokens made.

    Raises:
        GenerationError: the model's output is not finite.
    """
    device, live = backbone.device, list(rows)
    ids_BT, seen_BS = _left_padded([row.prompt_ids for row in rows], device)
    uniform_BNL = torch.stack([row.uniforms(sampling) for row in rows]).to(device)
    position_BT = (seen_BS.long().cumsum(dim=1) - 1).clamp_(min=0)
    steer_BT = torch.zeros_like(seen_BS)
    steer_BT[:, -1] = True
    cache = fresh_cache(backbone.model)
    for step in range(sampling.max_tokens):
        with backbone.steering_positions(steer_BT):
            logits_BV = _forward(backbone, ids_BT, seen_BS, position_BT, cache)
        token_B = next_tokens(logits_BV, uniform_BNL[:, step], sampling)
        ended = [ending.take(row, token) for row, token in zip(live, token_B.tolist(), strict=True)]
        stepped([row for row, end in zip(live, ended, strict=True) if end], len(live))
        if all(ended):
            return
        if any(ended):
            kept = [at for at, end in enumerate(ended) if not end]
            index_B = select(cache, kept, device)
            token_B, seen_BS, uniform_BNL = token_B[index_B], seen_BS[index_B], uniform_BNL[index_B]
            position_BT, live = position_BT[index_B], [live[at] for at in kept]
        ids_BT, position_BT = token_B[:, None], position_BT[:, -1:] + 1
        steer_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        seen_BS = torch.cat([seen_BS, steer_BT], dim=1)


def _forward(backbone: Backbone, ids_BT: Tensor, seen_BS: Tensor, position_BT: Tensor, cache: Any) -> Tensor:
    """Logits (B, V) of the last position; the cache takes up the others."""
    output = backbone.model(
        input_ids=ids_BT,
        attention_mask=seen_BS,
        position_ids=position_BT,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cast(Tensor, output.logits[:, -1])


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and which of them are real, (B, T); padding is masked, so any id will do for it."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    seen = [[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(seen, device=device)
