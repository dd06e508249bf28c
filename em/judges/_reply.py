"""What an OpenAI-compatible endpoint replied, checked piece by piece: a server may send anything."""

import json
from dataclasses import dataclass
from typing import Any, TypeGuard

from em.judges.base import REASONS

# What ends a whole reply. Everything else (tool_calls, error, abort, null) is a reply that went wrong.
FINISHES = ("stop", "length", "content_filter", "eos", "eos_token", "end_turn", "stop_sequence", "max_tokens")
CUT = ("length", "max_tokens")
Top = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, as the endpoint counts and bills them."""

    prompt: int
    reply: int


@dataclass(frozen=True)
class Reply:
    """One reply that can be read.

    Args:
        finish: why it ended; one of `FINISHES`.
        top: of the first token: the likeliest texts with their log-probabilities; empty where they were not
            asked for.
        tokens: the texts of the reply's tokens, where log-probabilities were asked for; not cached.
        usage: None if the endpoint does not say.
    """

    text: str
    finish: str
    top: Top = ()
    tokens: tuple[str, ...] = ()
    usage: Usage | None = None

    @property
    def cut(self) -> bool:
        """Whether the reply stops at the limit of tokens and not at its own end."""
        return self.finish in CUT


@dataclass(frozen=True)
class Failure:
    """Why there is no reply.

    Args:
        reason: a key of `REASONS`.
        detail: at most 200 characters, without a key.
        again: the content could not be used, so that the same call may still give a usable reply.
        everywhere: it may concern every call, for example because the key was refused.
        parameter: of the request, which the endpoint named.
        billed: whether the endpoint may have done the work.
    """

    reason: str
    detail: str = ""
    again: bool = False
    everywhere: bool = False
    parameter: str | None = None
    billed: bool = True

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"unknown reason {self.reason!r}")


def parse(body: bytes, logprobs: bool) -> tuple[Reply | Failure, Usage | None]:
    """The reply in a response's body, and what it cost even if it cannot be used.

    Args:
        logprobs: whether log-probabilities were asked for; without them the reply is a failure.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return _unusable(f"not JSON: {body[:80].decode('utf-8', 'replace')!r}"), None
    if not isinstance(content, dict):
        return _unusable(f"expected an object, got {type(content).__name__}"), None
    usage = _usage(content.get("usage"))
    choices = content.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return _unusable(f"no choices: {str(content.get('error', 'no error named'))[:120]}"), usage
    return _of_choice(choices[0], logprobs, usage), usage


def _of_choice(choice: dict[str, Any], logprobs: bool, usage: Usage | None) -> Reply | Failure:
    finish, message = choice.get("finish_reason"), choice.get("message")
    if finish == "content_filter":
        return Reply("", finish, usage=usage)
    if finish not in FINISHES:
        return _unusable(f"finish_reason is {str(finish)[:40]!r}")
    if not isinstance(message, dict):
        return _unusable("no message")
    text = message.get("content") or message.get("refusal")
    if not isinstance(text, str):
        cut = ", cut at its limit before it said anything" if finish in CUT else ""
        return _unusable(f"the reply is empty{cut}")
    if not logprobs:
        return Reply(text, finish, usage=usage)
    first = _first(choice.get("logprobs"))
    if first is None:
        return Failure("no_logprobs", "the reply came without log-probabilities", again=True)
    return Reply(text, finish, *first, usage)


def _first(logprobs: Any) -> tuple[Top, tuple[str, ...]] | None:
    """The alternatives of the first token and the texts of all; None if a piece is missing or no number."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    tokens = [_token(item) for item in content]
    listed = content[0].get("top_logprobs") if isinstance(content[0], dict) else None
    if None in tokens or not isinstance(listed, list) or not listed:
        return None
    top = [_token(item) for item in listed]
    if None in top:
        return None
    known = [pair for pair in top if pair is not None]
    said = [pair for pair in tokens if pair is not None]
    if said[0][0] not in dict(known):  # some endpoints list the alternatives alone
        known.append(said[0])
    return tuple(known), tuple(text for text, _ in said)


def _token(item: Any) -> tuple[str, float] | None:
    if not isinstance(item, dict):
        return None
    text, value = item.get("token"), item.get("logprob")
    # A log-probability is at most 0, up to rounding; −9999 and −Infinity stand for "practically never".
    if not isinstance(text, str) or not is_number(value) or not value <= 1e-3:
        return None
    return text, max(float(value), -9999.0)


def is_number(value: Any) -> TypeGuard[int | float]:
    """An int or float that is no bool and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _usage(value: Any) -> Usage | None:
    if not isinstance(value, dict):
        return None
    prompt, reply = value.get("prompt_tokens"), value.get("completion_tokens")
    if not (_is_count(prompt) and _is_count(reply)):
        return None
    return Usage(prompt, reply)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _unusable(detail: str) -> Failure:
    return Failure("bad_response", detail, again=True)
