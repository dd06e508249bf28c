"""Calls to an endpoint: cached, counted, limited, repeated, and each ends in a reply or a reason."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx2
import openai

from em.errors import JudgeError
from em.judges._cache import ReplyCache
from em.judges._call import Call
from em.judges._failures import CALL_ERRORS, Redactor, failure
from em.judges._reply import Failure, Reply, Usage, parse
from em.judges._spend import Budget, Size
from em.progress import say

UNREACHABLE_CALLS = 50  # in a row; then the endpoint is taken to be gone

Outcome = Reply | Failure


class Caller:
    """Makes calls for one stretch of work of one judge, in one event loop.

    Args:
        attempts: how often a call is made whose content cannot be used; the client itself repeats what fails
            on the way (timeouts, 408, 409, 429, 5xx).
        name: of the judge, for messages.
        works: whether the endpoint still takes any call; asked when it refuses one for a reason that may
            concern all.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        redact: Redactor,
        cache: ReplyCache,
        budget: Budget,
        *,
        concurrency: int,
        attempts: int,
        name: str,
        works: Callable[["Caller"], Awaitable[bool]] | None = None,
    ):
        self.cache, self.budget, self._redact = cache, budget, redact
        self._client, self._attempts, self._works = client, attempts, works
        self._name = name
        self._slots = asyncio.Semaphore(concurrency)
        self._checking = asyncio.Lock()
        self._settled = asyncio.Event()
        self._flights: dict[bytes, asyncio.Future[Outcome]] = {}
        self._unreachable = 0
        self._spent = self._gone = False
        self.stopped: str | None = None  # why no call can be made any more

    async def ask(self, call: Call) -> Outcome:
        """The reply from the cache, from the same call that is in flight, or from the endpoint."""
        flight = self._flights.get(call.key)
        if flight is not None:
            return await asyncio.shield(flight)  # one who waits and gives up must not end it for all
        flight = self._flights[call.key] = asyncio.get_running_loop().create_future()
        try:
            outcome = await self._known_or_asked(call)
            flight.set_result(outcome)
            return outcome
        finally:
            del self._flights[call.key]
            flight.cancel()  # does nothing unless this task was cancelled itself

    async def _known_or_asked(self, call: Call) -> Outcome:
        try:
            known = self.cache.get(call.key)
            if known is not None:
                return known
            async with self._slots:
                outcome = self._refused() or await self._asked(call)
                if isinstance(outcome, Reply):
                    self.cache.put(call.key, outcome)
            self.budget.finished(call.size)
            return outcome
        except JudgeError as error:  # of the cache: it concerns every call
            self.stopped = self.stopped or str(error)
            return Failure("bad_response", "the cache cannot be used", everywhere=True)

    def _refused(self) -> Failure | None:
        """Why nothing more is asked."""
        if self.stopped is not None:
            return Failure("rejected", self.stopped[:200], everywhere=True)
        if self._spent:
            return Failure("spend_limit", "not asked: the spend limit was reached")
        if self._gone:
            return Failure("connection", f"not asked: {UNREACHABLE_CALLS} calls in a row got no reply")
        return None

    async def _asked(self, call: Call) -> Outcome:
        last: Outcome = Failure("bad_response", "never asked")
        for attempt in range(self._attempts):
            refused = self._refused() if attempt else None
            outcome: Outcome = refused or await self.send(call, attempt)
            if isinstance(outcome, Reply):
                last = outcome
                if call.final(outcome):
                    return outcome
            elif outcome.again:
                # A reply that was read, though it says nothing usable, tells more than one that was not.
                last = last if isinstance(last, Reply) else outcome
            elif outcome.everywhere:
                return await self._confirmed(outcome)
            else:
                return outcome
        return last

    async def send(self, call: Call, attempt: int = 0, learn: bool = True) -> Outcome:
        """Make the call once and count what it costs; nothing of it is cached.

        Args:
            learn: estimates follow what it costs.
        """
        reserved = await self._reserve(call.size)
        if reserved is None:
            return Failure("spend_limit", "the next call might exceed the spend limit", billed=False)
        outcome: Outcome | None = None
        usage: Usage | None = None
        try:
            outcome, usage = await self._sent(call, attempt)
        finally:
            billed = not isinstance(outcome, Failure) or outcome.billed
            self.budget.settle(reserved, call.size, usage, billed, learn)
            self._settled.set()
            self._settled.clear()
        self._watch(outcome)
        return outcome

    async def _sent(self, call: Call, attempt: int) -> tuple[Outcome, Usage | None]:
        body = call.request(attempt)
        try:
            # The raw bytes: the client itself builds objects of any shape, and text of what is not JSON.
            response = await self._client.post(
                "/chat/completions", body=body, cast_to=httpx2.Response, options={}
            )
        except CALL_ERRORS as error:
            # Only the failure leaves: the error holds the request, and that the key.
            problem = failure(error, self._redact)
            if problem.reason == "content_filter":  # definitive, in whatever form an endpoint says it
                return Reply("", "content_filter"), Usage(0, 0)
            return problem, None
        outcome, usage = parse(self._redact.body(response.content), "logprobs" in body)
        if isinstance(outcome, Reply):
            return replace(outcome, text=self._redact(outcome.text)), usage
        return replace(outcome, detail=self._redact(outcome.detail)[:200]), usage

    async def _reserve(self, size: Size) -> Usage | None:
        """Wait for calls in flight, which cost less than they reserve, before the limit counts as reached."""
        while not self._spent:
            reserved = self.budget.reserve(size)
            if reserved is not None:
                return reserved
            if self.budget.in_flight == 0:
                # For every later call too: else the limit would choose short answers.
                self._spent = True
                say(
                    f"judge {self._name}: the spend limit is reached after {self.budget.tokens:,} tokens; "
                    "the answers that are left stay unscored. Raise it and run the same command: it goes on"
                )
                break
            await self._settled.wait()
        return None

    def _watch(self, outcome: Outcome) -> None:
        """Count calls that reached nobody, so that a dead endpoint does not cost hours of waiting."""
        lost = isinstance(outcome, Failure) and outcome.reason in ("connection", "timeout")
        self._unreachable = self._unreachable + 1 if lost else 0
        if self._unreachable >= UNREACHABLE_CALLS and not self._gone:
            self._gone = True
            say(
                f"judge {self._name}: {UNREACHABLE_CALLS} calls in a row got no reply; nothing more is asked "
                "and the answers that are left stay unscored. Run the same command when the endpoint is back"
            )

    async def _confirmed(self, refused: Failure) -> Failure:
        """Stop everything if the endpoint takes no call at all; a gateway may refuse one text alone."""
        async with self._checking:
            if self.stopped is None and (self._works is None or not await self._works(self)):
                self.stopped = (
                    f"the endpoint refuses every call ({refused.detail}); check the key, the account and the "
                    "model. What was scored is kept: the same command goes on from there"
                )
        return replace(refused, everywhere=self.stopped is not None)
