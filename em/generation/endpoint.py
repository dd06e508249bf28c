"""Answers of any OpenAI-compatible server, for example vLLM, through its chat completions."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from em.datamodules.answers import Answer
from em.errors import ConfigError, GenerationError
from em.generation.requests import Done, Request, ignore
from em.generation.sampling import Sampling
from em.progress import Task

LIMIT_KEYS = ("max_tokens", "max_completion_tokens")


class Endpoint:
    """A model behind an HTTP server.

    The seed of each request is sent, so that a server that honours it gives the same answers again; not all
    do, and none promises the answers of the same model in this process.

    Args:
        base_url: for example http://localhost:8000/v1.
        model: as the server calls it.
        key_env: environment variable that holds the API key; None: the server needs none. The key is never
            logged or written.
        concurrency: requests in flight.
        timeout: seconds for one try.
        max_retries: tries after the first, with growing pauses, on timeouts, 408, 409, 429 and 5xx.
        limit_key: what the server calls the token limit; OpenAI's newer models take max_completion_tokens.
        transport: of httpx2, in place of the network.

    Raises:
        ConfigError: an option is out of range; all problems at once.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120,
        max_retries: int = 6,
        limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        transport: Any = None,
    ):
        self.base_url, self.model, self.key_env = base_url, model, key_env
        self.concurrency, self.timeout, self.max_retries = concurrency, timeout, max_retries
        self.limit_key, self._transport = limit_key, transport
        problems = _url_problems(base_url)
        if not model:
            problems.append("model: expected the name by which the server knows the model, got none")
        if concurrency < 1:
            problems.append(f"concurrency: expected at least 1, got {concurrency!r}")
        if timeout <= 0:
            problems.append(f"timeout: expected seconds above 0, got {timeout!r}")
        if max_retries < 0:
            problems.append(f"max_retries: expected 0 or more, got {max_retries!r}")
        if limit_key not in LIMIT_KEYS:
            problems.append(f"limit_key: expected {' or '.join(LIMIT_KEYS)}, got {limit_key!r}")
        if problems:
            raise ConfigError(problems)

    def describe(self) -> dict[str, Any]:
        """What identifies it in a record; the address may change and holds no secret either."""
        return {"source": "endpoint", "served": self.model}

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, model: str, done: Done = ignore
    ) -> list[Answer]:
        """Answer every request.

        Args:
            model: name of who answers, in the answers.
            done: called with each answer as soon as it is there.

        Returns:
            The answers in the order of the requests.

        Raises:
            GenerationError: no key, the server cannot be reached, refuses the key or does not know the model;
                or a request failed to the last retry: what was answered until then has gone to `done`.
        """
        # Lazy: the import takes a second, which a run that asks no server should not pay.
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        from em.generation._calls import Calls

        if not requests:
            return []
        key = self._key()
        http = DefaultAsyncHttpxClient(transport=self._transport, timeout=self.timeout)
        async with AsyncOpenAI(
            base_url=self.base_url,
            api_key=key or "none",
            timeout=self.timeout,
            max_retries=self.max_retries,
            http_client=http,
        ) as client:
            calls = Calls(self, client, key, sampling, model, done)
            with Task(f"answers of {model}", len(requests)) as calls.task:
                await calls.reach()
                return await calls.all(requests)

    def _key(self) -> str:
        """The key, empty where none is needed."""
        if self.key_env is None:
            return ""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise GenerationError(
                f"{self.base_url}: the environment variable {self.key_env} holds no key; set it, name "
                "another one in key_env, or set key_env to null for a server that needs none"
            )
        return key


def answer_all(
    endpoint: Endpoint, requests: Sequence[Request], sampling: Sampling, model: str, done: Done
) -> list[Answer]:
    """`Endpoint.generate` from code that runs in no event loop."""
    return asyncio.run(endpoint.generate(requests, sampling, model, done))


def _url_problems(base_url: str) -> list[str]:
    try:
        parts = urlsplit(base_url)
        secret, whole = parts.username or parts.password, parts.scheme in ("http", "https") and parts.hostname
    except ValueError:  # for example an open bracket
        secret, whole = None, None
    if secret:
        return ["base_url: holds a user name or password; put the key into the variable of key_env instead"]
    if not whole:
        return [f"base_url: expected an address such as http://localhost:8000/v1, got {base_url!r}"]
    return []
