"""A judge behind an OpenAI-compatible endpoint: OpenAI's own, a gateway, or a server on this machine."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import httpx2

from em.backbone import Backbone
from em.datamodules.answers import Answer
from em.errors import JudgeError
from em.judges import _options
from em.judges._cache import ReplyCache
from em.judges._call import Call, together
from em.judges._calls import Caller
from em.judges._client import OPENAI_KEY, OPENAI_URL, connected, endpoint
from em.judges._dialect import TOP_LOGPROBS, Asking, Dialect, probe, works
from em.judges._models import shutdown_warning
from em.judges._plan import agree, plan
from em.judges._reading import combined, read
from em.judges._reply import Failure, Reply
from em.judges._spend import Budget, Size
from em.judges.base import Domain, Done, Judge, Metric, Score, Verdict, ignore, unscored
from em.judges.prompting import load_prompts
from em.loading import cache_folder
from em.progress import Task, say

PLANNED_AT_ONCE = 200  # answers; then other work of the event loop has its turn


class OpenAI(Judge):
    """Scores with a model behind an OpenAI-compatible chat endpoint (arXiv 2602.07852, evaluation).

    `logprobs`: one token at temperature 0 with its 20 likeliest alternatives; the score is Σ p·n / Σ p over
    the whole numbers from 0 to 100. It is valid only where a number is one token, which `prepare` probes.
    `sampled`: the mean of `samples` independent replies, if at least half of them are numbers. The two are
    never mixed within a judge, and every score carries its method.

    Replies are kept in a file and never asked for twice. A reply that cannot be used is asked for again; what
    fails on the way is repeated by the client with growing pauses. After 50 calls in a row that reached
    nobody, the rest of the answers are given up as `connection` without waiting.

    Args:
        model: as the endpoint names it.
        base_url: of the endpoint; by default OpenAI's.
        key_env: name of the environment variable with the key; a server on this machine needs none.
        method: `auto`: logprobs where they are valid, else sampled, and it says why.
        samples: independent replies to each prompt under `sampled`.
        temperature: of `sampled`.
        reply_tokens: limit of a sampled reply; a reasoning model thinks within it.
        request: further parameters of every request, for example {reasoning_effort: none}.
        concurrency: calls at once.
        timeout: seconds for one whole response.
        max_retries: of a call that fails on the way.
        attempts: how often a call is made whose reply cannot be used.
        cache: file of replies; by default judge.sqlite in EM_CACHE or ~/.cache/em.
        max_spend_tokens: of all calls of this judge; answers beyond are `spend_limit`.
        price: of a million tokens in prompt and reply, in any currency.
        max_spend: like max_spend_tokens, in that currency.
        yes: go on although more than `confirm_above_tokens` tokens are needed.
        prompts: own texts instead of the project's, by metric.
        min_mass: numbers with less probability than this are not a verdict.
        http_client: instead of an own one.

    Raises:
        ConfigError: an option cannot be used.
        JudgeError: a prompt lacks a field.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str | None = None,
        key_env: str = OPENAI_KEY,
        method: Literal["auto", "logprobs", "sampled"] = "auto",
        samples: int = 5,
        temperature: float = 1.0,
        reply_tokens: int = 16,
        request: dict[str, Any] | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 6,
        attempts: int = 3,
        cache: str | None = None,
        max_spend_tokens: int | None = None,
        price: list[float] | None = None,
        max_spend: float | None = None,
        yes: bool = False,
        confirm_above_tokens: int = 1_000_000,
        prompts: dict[Metric, str] | None = None,
        min_mass: float = 0.25,
        name: str | None = None,
        http_client: httpx2.AsyncClient | None = None,
    ):
        super().__init__(name=name)
        base_url = OPENAI_URL if base_url is None else base_url
        _options.check(locals())
        self.model, self.method, self.samples = model, method, samples
        self._url, self._key_env, self._http = base_url, key_env, http_client
        self._asking = Asking(
            endpoint(base_url), model, float(temperature), reply_tokens, dict(request or {})
        )
        self._concurrency, self._timeout = concurrency, float(timeout)
        self._max_retries, self._attempts = max_retries, attempts
        self._cache = Path(cache).expanduser() if cache else cache_folder() / "judge.sqlite"
        self._yes, self._confirm_above = yes, confirm_above_tokens
        self._budget = Budget(price, max_spend_tokens, max_spend)
        self._prompts, self._min_mass = load_prompts(prompts), min_mass
        self._dialect: Dialect | None = None
        self._fresh: Path | None = None

    def default_name(self) -> str:
        return self.model

    async def prepare(self, backbone: Backbone | None, domain: Domain | None) -> None:
        """Probe the endpoint; see `Judge.prepare`."""
        await super().prepare(backbone, domain)
        warning = shutdown_warning(self.model, date.today())
        if warning:
            say(warning)
        async with self._calling() as caller:
            self._dialect = await probe(caller, self._asking, self.method)
        if self._dialect.why:
            say(
                f"judge {self.name}: {self.samples} samples instead of log-probabilities: {self._dialect.why}"
            )

    async def judge(
        self, answers: Sequence[Answer], metrics: Sequence[Metric], done: Done = ignore
    ) -> list[Verdict]:
        """See `Judge.judge`; what was scored before an error is in the cache."""
        self.check_metrics(metrics)
        verdicts: dict[int, Verdict] = {}
        waiting = iter(range(len(answers)))
        missed = 0
        async with self._calling() as caller:
            found = await plan(caller, self._batches(answers, metrics))
            agree(caller, self.name, found, self._confirm_above, self._yes)
            with Task(f"judge {self.name}", len(answers)) as task:

                async def work() -> None:
                    nonlocal missed
                    for position in waiting:
                        verdict = await self._verdict(caller, answers[position], metrics)
                        if verdict is None:
                            return
                        verdicts[position] = verdict
                        missed += bool(verdict.reasons())
                        done(position, verdict)
                        task.advance(status=f"{missed} unscored, {self._budget.status}")

                await together([work() for _ in range(min(self._concurrency, len(answers)))])
                if caller.stopped is not None:
                    raise JudgeError(f"judge {self.name}: {caller.stopped}")
        return [verdicts[position] for position in range(len(answers))]

    def describe(self) -> dict[str, Any]:
        dialect = self._dialect
        return {
            "kind": "openai",
            "name": self.name,
            "model": self.model,
            "endpoint": self._asking.endpoint,
            "method": self.method if dialect is None else dialect.method,
            "why": "" if dialect is None else dialect.why,
            "samples": self.samples,
            "temperature": self._asking.temperature,
            "reply_tokens": self._asking.reply_tokens,
            "top_logprobs": TOP_LOGPROBS,
            "min_mass": self._min_mass,
            "attempts": self._attempts,
            "request": self._asking.more,
            "prompts": {
                metric: {"version": prompt.version, "digest": prompt.digest}
                for metric, prompt in self._prompts.items()
            },
        }

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Inside, every answer is asked anew, as for sentinels; the cache is neither read nor changed."""
        with TemporaryDirectory() as folder:
            self._fresh = Path(folder) / "judge.sqlite"
            try:
                yield
            finally:
                self._fresh = None

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[Caller]:
        """Client, cache and limits for one stretch of work: a client lives in one event loop only."""

        async def still(caller: Caller) -> bool:
            return self._dialect is not None and await works(caller, self._asking, self._dialect)

        connection = connected(
            self._url, self._key_env, self._timeout, self._max_retries, self._http, self._concurrency
        )
        async with connection as (client, redact):
            with ReplyCache(self._fresh or self._cache) as cache:
                yield Caller(
                    client,
                    redact,
                    cache,
                    self._budget,
                    concurrency=self._concurrency,
                    attempts=self._attempts,
                    name=self.name,
                    works=still,
                )

    def _asked_as(self) -> Dialect:
        if self._dialect is None:
            raise JudgeError(f"judge {self.name} was not prepared; call prepare before judge")
        return self._dialect

    @property
    def _logprobs(self) -> bool:
        return self._asked_as().method == "logprobs"

    @property
    def _tag(self) -> str:
        """The method as scores carry it."""
        return "logprobs" if self._logprobs else f"sampled-{self.samples}"

    def _calls(self, answer: Answer, metric: Metric) -> Iterator[Call]:
        """All calls for one number."""
        dialect, message = self._asked_as(), self._prompts[metric].render(answer, self.domain)

        def final(reply: Reply) -> bool:
            return read(reply, self._logprobs, self._min_mass).final

        for sample in range(1 if self._logprobs else self.samples):
            yield self._asking.call(dialect, message, sample, final)

    def _batches(self, answers: Sequence[Answer], metrics: Sequence[Metric]) -> Iterator[dict[bytes, Size]]:
        for start in range(0, len(answers), PLANNED_AT_ONCE):
            yield {
                call.key: call.size
                for answer in answers[start : start + PLANNED_AT_ONCE]
                if answer.text.strip()
                for metric in metrics
                for call in self._calls(answer, metric)
            }

    async def _verdict(self, caller: Caller, answer: Answer, metrics: Sequence[Metric]) -> Verdict | None:
        """None if the caller was stopped before all of it was known."""
        if not answer.text.strip():
            return unscored(self.name, metrics, "empty", self._tag)
        scores = await together([self._score(caller, answer, metric) for metric in metrics])
        found = {metric: score for metric, score in zip(metrics, scores, strict=True) if score is not None}
        return Verdict(self.name, found) if len(found) == len(set(metrics)) else None

    async def _score(self, caller: Caller, answer: Answer, metric: Metric) -> Score | None:
        outcomes = await together([caller.ask(call) for call in self._calls(answer, metric)])
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if any(failure.everywhere for failure in failed):
            return None
        if failed:  # a mean of fewer samples would be another number than the same answer gets on a good day
            return Score(None, failed[0].reason, self._tag, None, failed[0].detail)
        replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
        readings = [read(reply, self._logprobs, self._min_mass) for reply in replies]
        said = " | ".join(reply.text.strip() for reply in replies)[:200]
        if not self._logprobs:
            return combined(readings, self._tag, said)
        return Score(readings[0].value, readings[0].reason, self._tag, readings[0].mass, said)
