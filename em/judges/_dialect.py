"""Asks an endpoint, before anything is judged, how it can be asked."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from em.errors import JudgeError
from em.hooks import keyed_seed
from em.judges._cache import key_of
from em.judges._call import Call
from em.judges._calls import Caller, Outcome
from em.judges._reply import Failure, Reply

TOP_LOGPROBS = 20
EASY = (100, 87)  # digit by digit, the first token of either is another number
EASY_TOKENS = 8
TRIES = 5
KEPT_SECONDS = 86_400.0  # an endpoint may learn to return log-probabilities
SEEDS = 2**31


@dataclass(frozen=True)
class Dialect:
    """How an endpoint is asked.

    Args:
        method: `logprobs`: one token with its distribution; `sampled`: independent whole replies.
        limit: the name of the limit of tokens; newer models refuse `max_tokens`.
        temperature, seed: whether they are sent.
        why: why it is not `logprobs`; empty if it is, or if nobody asked for it.
    """

    method: Literal["logprobs", "sampled"]
    limit: str = "max_tokens"
    temperature: bool = True
    seed: bool = True
    why: str = ""


@dataclass(frozen=True)
class Asking:
    """What the user chose: model, endpoint, and the parameters of sampling.

    Args:
        reply_tokens: limit of a sampled reply.
        more: further parameters of every request.
    """

    endpoint: str
    model: str
    temperature: float
    reply_tokens: int
    more: dict[str, Any]

    def call(
        self,
        dialect: Dialect,
        message: str,
        sample: int = 0,
        final: Callable[[Reply], bool] = lambda reply: True,
        tokens: int | None = None,
    ) -> Call:
        """The request for one verdict.

        Args:
            tokens: limit of the reply, where it is not that of the method.
        """
        logprobs = dialect.method == "logprobs"
        most = tokens or (1 if logprobs else self.reply_tokens)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            dialect.limit: most,
        }
        if dialect.temperature:
            body["temperature"] = 0.0 if logprobs else self.temperature
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        seeds = None
        if dialect.seed and not logprobs:

            def seeds(attempt: int) -> int:
                return keyed_seed("judge", message, sample, attempt) % SEEDS

        return Call(self.endpoint, {**body, **self.more}, sample, seeds, final, most)


def easy(number: int) -> str:
    """A message that any judge follows."""
    return f"Reply with the number {number} and nothing else."


async def probe(caller: Caller, asking: Asking, method: str) -> Dialect:
    """The dialect of an endpoint: asked in a few tiny calls, or remembered for a day.

    Args:
        method: `auto`, `logprobs` or `sampled`.

    Raises:
        JudgeError: it cannot be reached, refuses the key or the model, or cannot do what `method` asks for.
    """
    key = key_of({"probe": 1, "method": method, **asdict(asking)})
    known = caller.cache.get(key, time.time() - KEPT_SECONDS)
    if known is not None:
        return _remembered(known.text)
    wanted: Literal["logprobs", "sampled"] = "sampled" if method == "sampled" else "logprobs"
    dialect = await _suited(caller, asking, Dialect(wanted))
    if dialect.method == "logprobs":
        why = await _invalid(caller, asking, dialect)
        if why:
            dialect = replace(dialect, method="sampled", why=why)
    if dialect.method == "sampled" and wanted == "logprobs":
        if method == "logprobs":
            raise JudgeError(
                f"method: logprobs cannot be used with {asking.model}: {dialect.why}; "
                "set method: sampled (or auto), or use another model"
            )
        dialect = await _suited(caller, asking, dialect)
    caller.cache.put(key, Reply(json.dumps(asdict(dialect)), "stop"))
    return dialect


def _remembered(text: str) -> Dialect:
    try:
        return Dialect(**json.loads(text))
    except (ValueError, TypeError):
        pass
    raise JudgeError("the judge's cache is damaged; move it away, or set cache: of the judge to another file")


async def _suited(caller: Caller, asking: Asking, dialect: Dialect) -> Dialect:
    """The dialect without what the endpoint refuses."""
    while True:
        outcome = await _tried(caller, asking, dialect, EASY[0])
        if isinstance(outcome, Reply):
            return dialect
        parameter = outcome.parameter
        if parameter == "max_tokens" and dialect.limit == "max_tokens":
            dialect = replace(dialect, limit="max_completion_tokens")
        elif parameter == "seed" and dialect.seed and dialect.method == "sampled":
            dialect = replace(dialect, seed=False)
        elif parameter == "temperature" and dialect.temperature and _harmless(asking, dialect):
            dialect = replace(dialect, temperature=False)
        elif dialect.method == "logprobs" and (parameter is not None or outcome.reason == "no_logprobs"):
            return replace(dialect, method="sampled", why=outcome.detail)
        else:
            raise JudgeError(_useless(asking, outcome))


def _harmless(asking: Asking, dialect: Dialect) -> bool:
    # The models that refuse a temperature sample at 1.
    return dialect.method == "sampled" and asking.temperature == 1


async def _tried(caller: Caller, asking: Asking, dialect: Dialect, number: int) -> Outcome:
    """An easy call, again while its content cannot be used."""
    tokens = EASY_TOKENS if dialect.method == "logprobs" else None
    call = asking.call(dialect, easy(number), tokens=tokens)
    outcome: Outcome = Failure("bad_response")
    for attempt in range(TRIES):
        outcome = await caller.send(call, attempt, learn=False)
        if isinstance(outcome, Reply) or not outcome.again:
            break
    return outcome


async def _invalid(caller: Caller, asking: Asking, dialect: Dialect) -> str:
    """Why the first token of a reply is not the whole number; empty if it is."""
    why = ""
    for number in EASY:
        for _ in range(TRIES):
            outcome = await _tried(caller, asking, dialect, number)
            if isinstance(outcome, Failure):
                if outcome.again:
                    return outcome.detail
                raise JudgeError(_useless(asking, outcome))
            why = _first_token(outcome.tokens[0], outcome.text, number)
            if not why:
                break
        if why:
            return why
    return ""


def _first_token(token: str, text: str, number: int) -> str:
    bare = token.removeprefix(" ")
    if bare == str(number):
        return ""
    if not bare.strip():
        return f"its replies begin with a token of white space ({token!r})"
    if str(number).startswith(bare):
        return f"its tokenizer writes {number} in several tokens, so that the first is not the number"
    return f"asked for the number {number} alone, it said {text[:40]!r}"


def _useless(asking: Asking, outcome: Failure) -> str:
    """Why nothing can be judged, and what to change."""
    said = f" ({outcome.detail})" if outcome.detail else ""
    where = f"judge {asking.model} at {asking.endpoint}"
    if outcome.everywhere:
        return f"{where} refuses to be used{said}; check the key, the account, base_url and the model's name"
    fixes = {
        "connection": "cannot be reached{}; check base_url, the network and that the server runs",
        "timeout": "does not answer in time{}; raise timeout, or check that the server runs",
        "rate_limit": "takes no more requests{}; wait, or check the account's limits",
        "server_error": "fails{}; wait, or check the server",
        "spend_limit": "may not be asked even once{}; raise max_spend_tokens or max_spend",
        "bad_response": "does not reply in a usable way{}; base_url must be an OpenAI-compatible one, mostly "
        "with /v1 at its end; a reasoning model needs more reply_tokens or less reasoning (request:)",
    }
    fix = fixes.get(outcome.reason, "rejects a plain request{}; use another model or other options")
    return f"{where} {fix.format(said)}"


async def works(caller: Caller, asking: Asking, dialect: Dialect) -> bool:
    """Whether the endpoint still takes an easy call."""
    outcome = await _tried(caller, asking, dialect, EASY[0])
    return isinstance(outcome, Reply) or not outcome.everywhere
