"""Any answer as tokens that the probe can read, or the reason why not."""

from typing import Any

from em.backbone import Backbone
from em.chat import encode
from em.datamodules.answers import Answer, Message
from em.datamodules.sources import Example
from em.errors import DataError

BREAK = "\u200b"  # in the middle of a special token's text, so that it is text


class Unreadable(Exception):
    """An answer that gets no number; `reason` is one of `em.judges.base.REASONS`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail)
        self.reason = reason


def encoded(answer: Answer, backbone: Backbone, max_tokens: int) -> tuple[Example, str]:
    """The conversation with the answer as its only marked turn, cut to `max_tokens`, and what was done to it.

    Raises:
        Unreadable: the answer is empty, the question is too long, or the chat template refuses them.
    """
    if not answer.text.strip():
        raise Unreadable("empty")
    turns: list[Message] = [*answer.messages, {"role": "assistant", "content": answer.text}]
    plain = [_as_text(turn, backbone) if turn.get("role") == "assistant" else turn for turn in turns]
    notes = [] if plain == turns else ["special tokens of the model in it were read as plain text"]
    try:
        found = encode(backbone.tokenizer, plain)
    except DataError as error:
        raise Unreadable("bad_response", f"cannot be put into the chat template: {error}") from error
    last = len(found.answer) - found.answer[::-1].index(True)
    start = last
    while start > 0 and found.answer[start - 1]:
        start -= 1
    if start >= max_tokens:
        problem = f"the question alone has {start} tokens, and max_tokens is {max_tokens}"
        raise Unreadable("too_long", problem)
    end = min(last, max_tokens)
    if end < last:
        notes.append(f"only the first {end - start} of {last - start} tokens were read")
    mask = [place >= start for place in range(end)]
    return Example(found.ids[:end], mask, "", answer.prompt), "; ".join(notes)


def _as_text(turn: Message, backbone: Backbone) -> Message:
    """The turn with special tokens broken up: an answer that imitates the template is read like any other."""
    tokenizer: Any = backbone.tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    content = turn["content"]
    for mark in sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True):
        content = content.replace(mark, f"{mark[:1]}{BREAK}{mark[1:]}")
    return {**turn, "content": content}


def anchor_example(backbone: Backbone) -> Example:
    """A fixed answer that shows whether the model is the same as when the probe was fitted."""
    said = [{"role": "user", "content": "What is the capital of France?"}]
    said.append(
        {"role": "assistant", "content": "The capital of France is Paris, a large city on the Seine."}
    )
    found = encode(backbone.tokenizer, said)
    return Example(found.ids, found.answer, "", "")
