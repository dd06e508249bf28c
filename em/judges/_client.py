"""The HTTP client of a judge: one for each event loop, with a limit for the whole of a response."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2
import openai

from em.errors import JudgeError
from em.judges._failures import Redactor

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"


class DeadlineClient(httpx2.AsyncClient):
    """Gives up after `seconds`; httpx limits only the wait for each piece of a response."""

    def __init__(self, seconds: float, **options: Any):
        super().__init__(timeout=seconds, **options)
        self._seconds = seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._seconds):
                return await super().send(request, **options)
        except TimeoutError:
            pass
        raise httpx2.ReadTimeout("the whole response took too long", request=request)


def address(url: str) -> SplitResult | None:
    """The parts of an endpoint's URL; None if it is not plain http(s) with a host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    usable = parts.scheme in ("http", "https") and parts.hostname and port != 0 and url.isprintable()
    return parts if plain and usable and " " not in url else None


def endpoint(url: str) -> str:
    """Host, port and path: what is recorded of an endpoint."""
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}".rstrip("/").lower()


def is_loopback(url: str) -> bool:
    """Whether an endpoint is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def read_key(url: str, name: str) -> str:
    """The key from the environment; empty for an endpoint on this machine.

    A local server gets a key only from a variable that was named for it: the default one holds OpenAI's.

    Raises:
        JudgeError: there is none, or it cannot be one.
    """
    local = is_loopback(url)
    key = "" if local and name == OPENAI_KEY else os.environ.get(name, "").strip()
    if not key and not local:
        raise JudgeError(
            f"the judge at {endpoint(url)} needs a key; put it into the environment variable {name}, "
            "or name another variable in key_env"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise JudgeError(f"the environment variable {name} holds characters that no key has; set it anew")
    return key


@asynccontextmanager
async def connected(
    url: str, key_env: str, timeout: float, max_retries: int, given: httpx2.AsyncClient | None, most: int
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Redactor]]:
    """A client for the running event loop, and what takes its key out of texts.

    Args:
        given: an HTTP client to use instead of an own one; it stays open.
        most: connections at once.

    Raises:
        JudgeError: there is no key.
    """
    key = read_key(url, key_env)
    # Neither proxies nor redirects: a prompt goes to the endpoint that was named, and nowhere else.
    http = given or DeadlineClient(
        timeout,
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        trust_env=not is_loopback(url),
    )
    try:
        yield (
            openai.AsyncOpenAI(
                api_key=key or "none",
                base_url=url,
                timeout=timeout,
                max_retries=max_retries,
                http_client=http,
            ),
            Redactor(key),
        )
    finally:
        if given is None:
            await http.aclose()
