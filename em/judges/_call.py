"""One request to an endpoint, and how several are waited for."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from em.judges._cache import key_of
from em.judges._reply import Reply
from em.judges._spend import Size

Result = TypeVar("Result")


@dataclass(frozen=True)
class Call:
    """One request for one reply.

    Args:
        endpoint: host and path.
        body: the request, without its seed.
        sample: number of this draw among the independent ones of the same request.
        seeds: makes the seed of the n-th attempt; None: none is sent.
        final: whether a reply says what was asked for; others are asked for again.
        most_reply: tokens that the reply may have.
    """

    endpoint: str
    body: dict[str, Any]
    sample: int = 0
    seeds: Callable[[int], int] | None = None
    final: Callable[[Reply], bool] = field(default=lambda reply: True)
    most_reply: int = 1

    @cached_property
    def key(self) -> bytes:
        """Identifies the call in the cache."""
        return key_of({"endpoint": self.endpoint, "body": self.body, "sample": self.sample})

    @cached_property
    def size(self) -> Size:
        """What it may cost."""
        text = "".join(message["content"] for message in self.body["messages"])
        return Size(len(text), len(text.encode()), self.most_reply)

    def request(self, attempt: int) -> dict[str, Any]:
        """What is sent. Each attempt has its own seed: a server that heeds it would repeat itself."""
        return self.body if self.seeds is None else {**self.body, "seed": self.seeds(attempt)}


async def together(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, in order; after an error or a cancellation nothing of it is left running."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
