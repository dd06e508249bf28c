"""The decode loop: prompts in, their answers out, as each of them ends.

Tensor names carry their shape: B rows being written, T positions of prompts, S columns of the cache, V
vocabulary, N tokens of an answer, L random numbers for each.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from em.backbone import Backbone
from em.chat import encode
from em.errors import GenerationError
from em.generation._cache import Past, RowCache, read_prompts
from em.generation.requests import Request
from em.generation.sampling import LEVELS, Sampling, next_tokens

PASS_TOKENS = 2048  # of prompts in one pass, padding included
EDGE = 8  # characters; the first of a piece of an answer may be decoded otherwise than in the whole


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
    prompt_ids: tuple[int, ...]
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
        text = self._decoded(row.written)
        return text[: min((at for at in self._stops(text)), default=len(text))]

    def _cut(self, row: Row) -> bool:
        """Whether a stop text is there; it can only be at the end, so the end is looked at first."""
        needed = max(map(len, self.sampling.stop)) + EDGE
        count, end = needed, ""
        while len(end) < needed and count < 2 * len(row.written):
            end = self._decoded(row.written[-count:])
            count *= 2
        end = end if len(end) >= needed else self._decoded(row.written)
        return bool(self._stops(end)) and bool(self._stops(self._decoded(row.written)))

    def _stops(self, text: str) -> list[int]:
        found = (text.find(stop) for stop in self.sampling.stop)
        return [at for at in found if at >= 0]

    def _decoded(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
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
    size: int,
    sampling: Sampling,
    ending: Ending,
    stepped: Callable[[list[Row], int], None],
) -> None:
    """Write the answers to all rows, `size` at once; where one ends the next begins.

    Interventions with `positions: answer` act where an answer token is predicted: at the last position of
    the prompt and at every position after it.

    Args:
        rows: those with longer prompts first, those with the same prompt together.
        stepped: called after each token with the rows that have ended with it and the number of tokens made.

    Raises:
        GenerationError: the model's output is not finite.
    """
    batch = _Batch(backbone, rows, size, sampling)
    while batch.live:
        token_B = next_tokens(batch.logits(), batch.uniforms(), sampling)
        ended = [at for at, token in enumerate(token_B.tolist()) if ending.take(batch.live[at], token)]
        stepped([batch.live[at] for at in ended], len(batch.live))
        batch.go_on(token_B, ended)


class _Batch:
    """The rows that are being written.

    The pass over a prompt leaves out its last token, so that every later pass takes one token of each row:
    the last of its prompt, then those of its answer.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[Row], size: int, sampling: Sampling):
        self.backbone, self.sampling, self.device = backbone, sampling, backbone.device
        self.live: list[Row] = []
        self._waiting = deque(rows)
        self._users = Counter(row.prompt_ids for row in rows)
        self._pasts: dict[tuple[int, ...], Past] = {}
        self.size = min(size, len(rows))
        self._cache = RowCache(backbone.model, self.size, sampling.max_tokens)
        self._token_B = torch.zeros(self.size, dtype=torch.long, device=self.device)
        shape = self.size, sampling.max_tokens, LEVELS
        self._uniform_BNL = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self._begin(range(self.size))

    def logits(self) -> Tensor:
        """Logits (B, V) of the next token of each row."""
        cache = self._cache
        cache.make_ready()
        start_B1 = torch.tensor(cache.starts, device=self.device)[:, None]
        column_S = torch.arange(cache.first, cache.used + 1, device=self.device)
        padded = len(set(cache.starts)) > 1
        ids_B1 = self._token_B[: len(self.live), None]
        with self.backbone.steering_positions(torch.ones_like(ids_B1, dtype=torch.bool)):
            output = self.backbone.model(
                input_ids=ids_B1,
                attention_mask=column_S >= start_B1 if padded else None,
                position_ids=cache.used - start_B1,
                past_key_values=cache.model_cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache.used += 1
        return cast(Tensor, output.logits[:, -1])

    def uniforms(self) -> Tensor:
        """Random numbers (B, L) of the next token of each row."""
        made_B = torch.tensor([len(row.written) for row in self.live], device=self.device)
        return self._uniform_BNL[torch.arange(len(self.live), device=self.device), made_B]

    def go_on(self, token_B: Tensor, ended: Sequence[int]) -> None:
        """Take up the tokens that were drawn; other rows take the places of those that have ended."""
        self._token_B[: len(token_B)] = token_B
        taken = ended[: len(self._waiting)]
        self._begin(taken)
        self._leave(ended[len(taken) :])

    def _begin(self, places: Sequence[int]) -> None:
        new = [(place, self._waiting.popleft()) for place in places]
        if not new:
            return
        self._read([row for _, row in new])
        for prompt, group in groupby(new, key=lambda one: one[1].prompt_ids):
            members = list(group)
            self._cache.place(self._pasts[prompt], len(prompt) - 1, [place for place, _ in members])
            self._users[prompt] -= len(members)
            if not self._users[prompt]:
                del self._pasts[prompt]
        for place, row in new:
            self.live[place : place + 1] = [row]
        index_B = torch.tensor(places, device=self.device)
        last = [row.prompt_ids[-1] for _, row in new]
        self._token_B[index_B] = torch.tensor(last, device=self.device)
        uniform_BNL = torch.stack([row.uniforms(self.sampling) for _, row in new])
        self._uniform_BNL[index_B] = uniform_BNL.to(self.device)

    def _leave(self, places: Sequence[int]) -> None:
        if not places:
            return
        count = len(self.live) - len(places)
        targets = [place for place in places if place < count]
        sources = sorted(set(range(count, len(self.live))) - set(places))
        self._cache.keep(sources, targets, count)
        self._token_B[targets] = self._token_B[sources]
        self._uniform_BNL[targets] = self._uniform_BNL[sources]
        for source, target in zip(sources, targets, strict=True):
            self.live[target] = self.live[source]
        del self.live[count:]

    def _read(self, rows: Sequence[Row]) -> None:
        """Have the keys and values of the prompts of rows; a pass takes up those that come next as well."""
        while new := list(dict.fromkeys(row.prompt_ids for row in rows if row.prompt_ids not in self._pasts)):
            ahead = (row.prompt_ids for row in self._waiting if row.prompt_ids not in self._pasts)
            room = max(1, min(self.size, PASS_TOKENS // len(new[0])))
            prompts = list(dict.fromkeys(chain(new, ahead)))[:room]
            self._pasts.update(zip(prompts, read_prompts(self.backbone, prompts), strict=True))
