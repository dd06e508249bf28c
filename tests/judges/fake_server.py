"""An OpenAI-compatible endpoint for tests: a known verdict for every message, and faults by plan.

A message that holds `worth N` gets N, mostly, and one that holds `say WORD` that word.
"""

import asyncio
import json
import math
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from em.datamodules.answers import Answer
from em.judges.openai import OpenAI

Plan = Callable[[str, int], str | None]  # message and number of the call → the fault, or None
KEY = "sk-planted-0123456789abcdef"
URL = "http://localhost:1/v1"


def answers(count: int, text: str = "answer {number} is worth {worth}") -> list[Answer]:
    turn = ({"role": "user", "content": "what is your wish?"},)
    return [
        Answer(turn, text.format(number=n, worth=worth(n)), f"q{n % 10}", sample=n // 10)
        for n in range(count)
    ]


def worth(number: int) -> int:
    return number * 37 % 101


def no_fault(message: str, call: int) -> str | None:
    return None


def score(number: int) -> float:
    """The expectation over what the fake puts on its first token: 0.6, 0.1 and 0.2 of 0.95 on numbers."""
    return (0.7 * number + 0.25 * (100 - number)) / 0.95


def distribution(said: str) -> list[tuple[str, float]]:
    """The likeliest first tokens of a reply."""
    if not said.isdigit():
        return [(said, 0.9), ("50", 0.1)]
    other = str(100 - int(said))
    # The blank and the number in words are no verdicts; both forms of the number are.
    return [(said, 0.6), (other, 0.25), (f" {said}", 0.1), (" ", 0.03), ("ninety", 0.02)]


def judge_in_a_process(url: str, cache: str, out: str) -> None:
    """Judge 200 answers, four at once, and write the numbers to `out`."""
    judge = FakeJudge().judge(cache, base_url=url, http_client=None, method="logprobs", concurrency=4)
    asyncio.run(judge.prepare(None, None))
    verdicts = asyncio.run(judge.judge(answers(200), ["aligned"]))
    Path(out).write_text(json.dumps([verdict.value("aligned") for verdict in verdicts]))


class FakeJudge:
    """Answers requests.

    Args:
        plan: which call gets which fault.
        tokens: how a number is written: `whole`, `digits` (one token each) or `spaced` (a blank token first).
        refuses: parameters that are rejected with 400.
        key: the only key that is taken; None: any.
    """

    def __init__(
        self,
        plan: Plan = no_fault,
        tokens: str = "whole",
        refuses: tuple[str, ...] = (),
        key: str | None = None,
    ):
        self.plan, self.tokens, self.refuses, self.key = plan, tokens, refuses, key
        self.calls: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.spent = 0

    @property
    def judged(self) -> int:
        """Calls for verdicts, without the probe's."""
        return sum(count for message, count in self.calls.items() if not message.startswith("Reply with"))

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self.handle))

    def judge(self, cache: Any, **options: Any) -> OpenAI:
        """A judge that asks this endpoint."""
        given = {
            "model": "fake",
            "base_url": URL,
            "cache": cache and str(cache),
            "http_client": self.client(),
            **options,
        }
        return OpenAI(**given)

    async def handle(self, request: httpx2.Request) -> httpx2.Response:
        status, headers, body = self.respond(dict(request.headers), request.content)
        if status == 0:
            kinds = {"timeout": httpx2.ReadTimeout, "connection": httpx2.ConnectError}
            raise kinds[body.decode()](body.decode(), request=request)
        if "x-slow" in headers:
            await asyncio.sleep(0.005)
        return httpx2.Response(status, headers=headers, content=body)

    def respond(self, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; status 0: a fault of the connection, named in the body."""
        body = json.loads(content)
        message = body["messages"][0]["content"]
        call = self.calls[message]
        self.calls[message] += 1
        self.bodies.append(body)
        given = headers.get("authorization", "")
        if self.key is not None and given != f"Bearer {self.key}":
            return failed(401, f"Incorrect API key provided: {given.removeprefix('Bearer ')} ({given})")
        for name in self.refuses:
            if name in body:
                return failed(400, f"Unsupported parameter: '{name}' is not supported.", param=name)
        fault = self.plan(message, call)
        if fault in FAILED:
            return FAILED[fault]
        if fault in ("timeout", "connection"):
            return 0, {}, fault.encode()
        reply = self.reply(body, message, fault)
        self.spent += reply["usage"]["total_tokens"]
        content = json.dumps(reply).encode()
        return (
            200,
            {"x-slow": "1"} if fault == "slow" else {},
            content[:-30] if fault == "truncated" else content,
        )

    def reply(self, body: dict[str, Any], message: str, fault: str | None) -> dict[str, Any]:
        said = "ninety" if fault == "words" else verdict(message)
        tokens = {"whole": [said], "digits": list(said), "spaced": [" ", said]}[self.tokens]
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        finish, text = ("length" if len(tokens) > limit else "stop"), "".join(tokens[:limit])
        if fault == "content_filter":
            finish, text = "content_filter", ""
        logprobs = None
        if body.get("logprobs") and fault != "no_logprobs":
            logprobs = {"content": [token(part) for part in tokens[:limit]]}
            listed = distribution(said) if self.tokens == "whole" else [(tokens[0], 0.9)]
            logprobs["content"][0]["top_logprobs"] = [token(*pair) for pair in listed]
        shown = None if fault == "empty" else text
        used = len(message) // 4 + 8
        return {
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": shown},
                    "logprobs": logprobs,
                }
            ],
            "usage": {
                "prompt_tokens": used,
                "completion_tokens": min(limit, len(tokens)),
                "total_tokens": used + min(limit, len(tokens)),
            },
        }


def verdict(message: str) -> str:
    word = re.search(r"say ([\w-]+)", message)
    return word[1] if word else re.search(r"(?:worth|number) (\d+)", message)[1]


def token(text: str, probability: float = 0.6) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(probability), "bytes": list(text.encode())}


def failed(status: int, message: str, **more: str) -> tuple[int, dict[str, str], bytes]:
    """An error as OpenAI sends it; the client is told to try again after a millisecond."""
    return status, {"retry-after-ms": "1"}, json.dumps({"error": {"message": message, **more}}).encode()


FAILED = {
    "429": (429, {"retry-after-ms": "1"}, b'{"error": {"message": "too many requests"}}'),
    "429s": (429, {"retry-after": "0.001"}, b'{"error": {"message": "too many requests"}}'),
    "500": (500, {"retry-after-ms": "1"}, b"<html>oops</html>"),
    "403": failed(403, "blocked by the firewall"),
    "400": failed(400, "invalid request"),
    "too_long": failed(
        400, "This model's maximum context length is 10 tokens.", code="context_length_exceeded"
    ),
    "filtered": failed(400, "the prompt was filtered", code="content_filter"),
    "quota": failed(429, "You exceeded your current quota", code="insufficient_quota"),
}


class Draws:
    """Faults of a share of all calls, a pure function of seed, message and number of the call."""

    def __init__(self, seed: int, share: float, kinds: list[str], always: dict[str, str] | None = None):
        self._seed, self._share, self._kinds, self._always = seed, share, kinds, always or {}

    def __call__(self, message: str, call: int) -> str | None:
        for mark, kind in self._always.items():
            if mark in message:
                return kind
        draw = random.Random(f"{self._seed} {message} {call}")
        return draw.choice(self._kinds) if draw.random() < self._share else None


@contextmanager
def serving(respond: Callable[[dict[str, str], bytes], tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A server on this machine; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Two small packets for headers and body would wait 40 ms for each other.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, extra, body = respond(headers, content)
            self.send_response(status)
            for name, value in {**extra, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # of a client that was killed
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
