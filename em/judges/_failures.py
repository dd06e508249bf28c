"""Errors of the client as failures with a reason, and nothing of a key in any of them."""

import re

import httpx2
import openai

from em.judges._reply import Failure

# All that a call can raise. OSError and ValueError: sockets and headers that the client does not wrap.
CALL_ERRORS = (
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    OSError,
    ValueError,
)
CONCERNS_ALL = (401, 402, 403, 404)
TOO_LONG = re.compile(r"context.{0,20}(length|size|window)|maximum.{0,20}(context|length)|too long", re.I)
PARAMETER = re.compile(r"\b(max_completion_tokens|max_tokens|temperature|seed|top_logprobs|logprobs)\b")
BEARER = re.compile(r"(?i)bearer\s+[^\s\"',}]+|\bsk-[\w*.-]{6,}")
SHORTEST_PART = 8  # characters: an endpoint may repeat a part of a key


class Redactor:
    """Takes a key, its beginning and whatever looks like one out of a text.

    A key of fewer than 8 characters is a placeholder for a local server: it may stand in any reply.
    """

    def __init__(self, key: str):
        self._parts = [key[:size] for size in range(len(key), SHORTEST_PART - 1, -1)]

    def __call__(self, text: str) -> str:
        for part in self._parts:
            text = text.replace(part, "[key]")
        return BEARER.sub("[key]", text)

    def body(self, content: bytes) -> bytes:
        """A response without the whole key, before anything is made of it."""
        return content.replace(self._parts[0].encode(), b"[key]") if self._parts else content


def failure(error: Exception, redact: Redactor) -> Failure:
    """What an error of the client means for the call."""
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, redact)
    if isinstance(error, openai.APITimeoutError):
        return Failure("timeout", "no reply in time, to the last retry")
    if isinstance(error, openai.APIConnectionError | httpx2.HTTPError | OSError):
        cause = error.__cause__ or error
        return Failure("connection", redact(f"{type(cause).__name__}: {cause}")[:200], billed=False)
    return Failure("bad_response", redact(f"{type(error).__name__}: {error}")[:200], again=True)


def _of_status(error: openai.APIStatusError, redact: Redactor) -> Failure:
    status, code = error.status_code, str(error.code or error.type or "")
    said = redact(f"HTTP {status}: {error.message}")[:200]
    named = error.param or next(iter(PARAMETER.findall(error.message)), None)
    parameter = named if isinstance(named, str) and PARAMETER.fullmatch(named) else None
    if status in CONCERNS_ALL or code == "insufficient_quota":
        return Failure("rejected", said, everywhere=True, billed=False)
    if "content_filter" in code or "content_policy" in code:
        return Failure("content_filter", said, billed=False)
    if status == 413 or (status < 500 and ("context_length" in code or TOO_LONG.search(error.message))):
        return Failure("too_long", said, parameter=parameter, billed=False)
    reasons = {408: "timeout", 409: "server_error", 429: "rate_limit"}
    reason = reasons.get(status, "server_error" if status >= 500 else "rejected")
    return Failure(reason, said, parameter=parameter, billed=False)
