"""The calls that an endpoint is sent, and what their failures mean to the user."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from em.datamodules.answers import Answer
from em.errors import GenerationError
from em.generation.requests import Done, Request
from em.generation.sampling import Sampling
from em.progress import Task

if TYPE_CHECKING:
    from em.generation.endpoint import Endpoint


class Calls:
    """The calls of one `generate`, on one client and one event loop."""

    task: Task

    def __init__(
        self,
        endpoint: "Endpoint",
        client: AsyncOpenAI,
        key: str,
        sampling: Sampling,
        model: str,
        done: Done,
    ):
        self.endpoint, self.client, self.key = endpoint, client, key
        self.sampling, self.model, self.done = sampling, model, done
        self.answers: dict[int, Answer] = {}
        self.problem = ""

    async def reach(self) -> None:
        """Refuse at once what no retry would help: nobody there, or a wrong key."""
        problem = ""
        try:
            await self.client.with_options(max_retries=min(1, self.endpoint.max_retries)).models.list()
        except openai.APIConnectionError as error:
            problem = self._connection(error)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            problem = self._refused(error)
        except openai.APIError:
            pass  # not every server lists its models
        if problem:
            raise GenerationError(problem)

    async def all(self, requests: Sequence[Request]) -> list[Answer]:
        """Keep `concurrency` requests in flight; after a failure those in flight are still waited for."""
        queue = iter(list(enumerate(requests)))

        async def work() -> None:
            for at, request in queue:
                if self.problem:
                    return
                await self._one(at, request)

        workers = [asyncio.create_task(work()) for _ in range(min(self.endpoint.concurrency, len(requests)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        # Raised here and not where it was caught: the caught error holds the request with the key.
        if self.problem:
            raise GenerationError(
                f"{self.problem}; {len(self.answers)} of {len(requests)} answers are there, and the same "
                "command goes on with the others"
            )
        return [self.answers[at] for at in range(len(requests))]

    async def _one(self, at: int, request: Request) -> None:
        problem = ""
        try:
            completion = await self._ask(request)
        except openai.NotFoundError as error:
            problem = await self._not_found(error)
        except openai.APIConnectionError as error:
            problem = self._connection(error)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            problem = self._refused(error)
        except openai.OpenAIError as error:
            problem = f"{self.endpoint.base_url}: {request.name}: {self._said(error)}"
        else:
            problem = self._take(at, request, completion)
        self.problem = self.problem or problem

    async def _ask(self, request: Request) -> Any:
        sampling = self.sampling
        options: dict[str, Any] = {self.endpoint.limit_key: sampling.max_tokens}
        if sampling.stop:
            options["stop"] = list(sampling.stop)
        return await self.client.chat.completions.create(
            model=self.endpoint.model,
            messages=[dict(turn) for turn in request.prompt.messages],  # type: ignore[misc]
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed(sampling.seed) >> 32,  # some servers take 32 bits only
            **options,
        )

    def _take(self, at: int, request: Request, completion: Any) -> str:
        """Keep the answer; returns what is wrong with the response, or nothing."""
        choices = completion.choices if isinstance(completion, ChatCompletion) else None
        message = choices[0].message if choices else None
        if not choices or message is None:
            return (
                f"{self.endpoint.base_url}: {request.name}: the response is not a chat completion; does the "
                "address end in /v1?"
            )
        reason = choices[0].finish_reason
        text = message.content or message.refusal or ""
        tokens = completion.usage.completion_tokens if completion.usage else 0
        finish = reason if reason in ("stop", "length") else "unknown"
        answer = request.answered(text, finish, tokens or 0, self.model)
        if finish == "unknown" and reason is not None:
            answer.extra["finish_reason"] = reason
        self.answers[at] = answer
        self.done(answer)
        self.task.advance()
        return ""

    async def _not_found(self, error: openai.NotFoundError) -> str:
        try:
            served = [model.id async for model in self.client.models.list()]
        except openai.APIError:
            served = []
        has = f"; it serves {', '.join(served[:10])}" if served else "; check the address, which ends in /v1"
        return f"{self.endpoint.base_url}: has no model {self.endpoint.model!r}{has} ({self._said(error)})"

    def _connection(self, error: openai.APIConnectionError) -> str:
        endpoint = self.endpoint
        if isinstance(error, openai.APITimeoutError):
            return f"{endpoint.base_url}: no answer within {endpoint.timeout:g} s; raise timeout"
        cause = self._hidden(str(error.__cause__ or error))
        return f"{endpoint.base_url}: cannot be reached ({cause}); is the server running there?"

    def _refused(self, error: openai.APIStatusError) -> str:
        where = f"in {self.endpoint.key_env}" if self.endpoint.key_env else "(key_env is null)"
        return f"{self.endpoint.base_url}: refuses the key {where}: {self._said(error)}"

    def _said(self, error: openai.OpenAIError) -> str:
        return self._hidden(" ".join(str(error).split()))[:300]

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "[key]") if self.key else text
