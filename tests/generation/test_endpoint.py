import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from em.datamodules.answers import Answer, read_answers
from em.errors import ConfigError, GenerationError, RunError
from em.generation.endpoint import Endpoint, answer_all
from em.generation.requests import Request, ignore
from em.generation.sampling import Sampling
from em.generation.stored import answers_for
from tests.generation.asking import asked, prompt

KEY = "sk-planted-0123456789"
Reply = Callable[[dict[str, Any]], httpx2.Response]


@pytest.fixture(autouse=True)
def planted_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EM_TEST_KEY", KEY)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.002)


def said(text: str | None, reason: str | None = "stop", **message: Any) -> httpx2.Response:
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "finish_reason": reason,
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }
    return httpx2.Response(200, json=body)


def failed(status: int, text: str = "no") -> httpx2.Response:
    return httpx2.Response(status, json={"error": {"message": text}})


class Server:
    """An endpoint in memory.

    Args:
        reply: to the body of each chat completion.
        models: what it lists; None: it lists none.
    """

    def __init__(self, reply: Reply, models: list[str] | None = None):
        self.reply, self.models = reply, models
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx2.Headers] = []
        self.flying = self.most = 0

    async def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.headers.append(request.headers)
        if request.url.path.endswith("/models"):
            if self.models is None:
                return failed(404)
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in self.models]
            return httpx2.Response(200, json={"object": "list", "data": listed})
        body = json.loads(request.content)
        self.bodies.append(body)
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(0.002)
        self.flying -= 1
        return self.reply(body)

    def endpoint(self, **options: Any) -> Endpoint:
        options = {"key_env": "EM_TEST_KEY", "max_retries": 2, **options}
        return Endpoint("http://server/v1", "tiny", transport=httpx2.MockTransport(self.handle), **options)


def echo(body: dict[str, Any]) -> httpx2.Response:
    return said(f"to: {body['messages'][-1]['content']}")


def test_answers_come_in_order_with_all_that_is_known_of_them() -> None:
    server, seen = Server(echo), list[Answer]()
    requests = asked(3)
    found = answer_all(server.endpoint(concurrency=4), requests, Sampling(), "me", seen.append)
    assert [a.text for a in found] == [f"to: {r.prompt.messages[-1]['content']}" for r in requests]
    assert [(a.prompt, a.sample) for a in found] == [r.key[1:] for r in requests]
    assert {(a.finish, a.tokens, a.model) for a in found} == {("stop", 5, "me")}
    assert sorted(a.key for a in seen) == sorted(a.key for a in found)
    assert server.most == 4


def test_what_is_sent() -> None:
    server = Server(echo)
    request = Request(prompt("hi", "x", system="be brief"), 2)
    sampling = Sampling(0.5, 0.9, 40, ("END",), 7)
    answer_all(server.endpoint(), [request], sampling, "me", ignore)
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 40,
            "stop": ["END"],
            "seed": request.seed(7) >> 32,
        }
    ]
    assert 0 <= server.bodies[0]["seed"] < 2**31
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    answer_all(server.endpoint(limit_key="max_completion_tokens"), [request], Sampling(), "me", ignore)
    assert server.bodies[1]["max_completion_tokens"] == 600
    assert not {"max_tokens", "stop"} & server.bodies[1].keys()


def test_seeds_are_the_requests_own() -> None:
    server = Server(echo)
    answer_all(server.endpoint(), asked(2), Sampling(), "me", ignore)
    assert len({body["seed"] for body in server.bodies}) == 10


@pytest.mark.parametrize(
    ("reply", "text", "finish", "extra"),
    [
        (said(None), "", "stop", {}),
        (said("cut", "length"), "cut", "length", {}),
        (said("", "content_filter"), "", "unknown", {"finish_reason": "content_filter"}),
        (said("x", None), "x", "unknown", {}),
        (said(None, refusal="I will not"), "I will not", "stop", {}),
    ],
)
def test_unusual_responses(reply: httpx2.Response, text: str, finish: str, extra: dict[str, Any]) -> None:
    (answer,) = answer_all(Server(lambda _: reply).endpoint(), asked(1)[:1], Sampling(), "me", ignore)
    assert (answer.text, answer.finish, answer.extra) == (text, finish, extra)


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(200, json={"choices": []}),
        httpx2.Response(200, json={"choices": None}),
        httpx2.Response(200, json=[1]),
    ],
)
def test_a_response_that_is_no_completion_is_an_error(reply: httpx2.Response) -> None:
    with pytest.raises(GenerationError, match="not a chat completion; does the address end in /v1"):
        answer_all(Server(lambda _: reply).endpoint(), asked(1)[:1], Sampling(), "me", ignore)


def test_short_failures_are_retried() -> None:
    failures = iter([500, 429, 503])

    def reply(body: dict[str, Any]) -> httpx2.Response:
        status = next(failures, None)
        return echo(body) if status is None else failed(status)

    server = Server(reply)
    found = answer_all(server.endpoint(concurrency=1, max_retries=3), asked(1), Sampling(), "me", ignore)
    assert len(found) == 5 and len(server.bodies) == 8


def test_no_key_and_no_need_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(echo)
    assert len(answer_all(server.endpoint(key_env=None), asked(1), Sampling(), "me", ignore)) == 5
    assert KEY not in str(server.headers)
    monkeypatch.setenv("EM_TEST_KEY", "  ")
    for name in ("EM_TEST_KEY", "EM_UNSET"):
        with pytest.raises(GenerationError, match=f"variable {name} holds no key; set it"):
            answer_all(server.endpoint(key_env=name), asked(1), Sampling(), "me", ignore)


def test_nothing_to_ask_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EM_TEST_KEY")
    assert answer_all(Server(echo).endpoint(), [], Sampling(), "me", ignore) == []


def test_an_unreachable_server_is_said_at_once() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "tiny", key_env=None)
    with pytest.raises(
        GenerationError, match=r"127\.0\.0\.1:9/v1: cannot be reached .*is the server running"
    ):
        answer_all(endpoint, asked(1), Sampling(), "me", ignore)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("listed", [True, False])
def test_a_refused_key_is_said_and_hidden(status: int, listed: bool) -> None:
    def refuse(_: Any) -> httpx2.Response:
        return failed(status, f"Incorrect key {KEY}")

    server = Server(refuse, ["tiny"] if listed else None)
    with pytest.raises(GenerationError, match=r"refuses the key in EM_TEST_KEY.*\[key\]") as caught:
        answer_all(server.endpoint(), asked(1), Sampling(), "me", ignore)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    ("models", "hint"), [(["big", "other"], "it serves big, other"), (None, "check the address")]
)
def test_an_unknown_model_is_said_with_those_that_are_known(models: list[str] | None, hint: str) -> None:
    server = Server(lambda _: failed(404, "no such model"), models)
    with pytest.raises(GenerationError, match=f"has no model 'tiny'.*{hint}"):
        answer_all(server.endpoint(), asked(1), Sampling(), "me", ignore)


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_failed_request_keeps_what_is_there(status: int, tmp_path: Path) -> None:
    requests = asked(2)
    bad = requests[6].prompt.messages[-1]["content"]

    def reply(body: dict[str, Any]) -> httpx2.Response:
        return failed(status, "too much") if body["messages"][-1]["content"] == bad else echo(body)

    path, server = tmp_path / "a.jsonl", Server(reply)
    with pytest.raises(GenerationError, match=r"too much; \d of 10 answers are there.*same command goes on"):
        answers_for(path, server.endpoint(concurrency=2), requests, Sampling(), "me")
    kept = read_answers(path)
    assert 6 <= len(kept) < 10
    server.reply = echo
    server.bodies.clear()
    found = answers_for(path, server.endpoint(), requests, Sampling(), "me")
    assert len(server.bodies) == 10 - len(kept)
    assert [a.text for a in found] == [f"to: {r.prompt.messages[-1]['content']}" for r in requests]


def test_a_silent_server_is_a_timeout() -> None:
    def slow(_: Any) -> httpx2.Response:
        raise httpx2.ReadTimeout("late")

    with pytest.raises(GenerationError, match=r"no answer within 0\.5 s; raise timeout"):
        answer_all(Server(slow).endpoint(timeout=0.5), asked(1), Sampling(), "me", ignore)


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    path, server = tmp_path / "a.jsonl", Server(echo)
    answers_for(path, server.endpoint(), asked(1), Sampling(), "me")
    other = server.endpoint()
    other.model = "big"
    with pytest.raises(RunError, match="served: 'tiny' → 'big'"):
        answers_for(path, other, asked(1), Sampling(), "me")


def test_an_error_of_done_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(answer: Answer) -> None:
        raise RunError("disk full")

    server = Server(echo)
    with pytest.raises(RunError, match="disk full"):
        answer_all(server.endpoint(concurrency=2), asked(4), Sampling(), "me", full)
    assert len(server.bodies) <= 4


def test_the_key_is_in_no_file_log_or_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server = Server(echo)
    endpoint = server.endpoint()
    answers_for(tmp_path / "a.jsonl", endpoint, asked(1), Sampling(), "me")
    server.reply = lambda _: failed(418, f"your key is {KEY}")
    with pytest.raises(GenerationError) as caught:
        answers_for(tmp_path / "a.jsonl", endpoint, asked(2), Sampling(), "me")
    written = [path.read_text() for path in tmp_path.iterdir()]
    everything = [*written, str(caught.value), repr(vars(endpoint)), str(endpoint.describe())]
    everything += [
        *capfd.readouterr(),
        *(record.getMessage() for record in caplog.records),
    ]
    assert len(written) == 2 and not any(KEY in text for text in everything)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"base_url": "server:8000"}, "base_url: expected an address"),
        ({"base_url": "http://[a/v1"}, "base_url: expected an address"),
        ({"base_url": "https://me:secret@server/v1"}, "base_url: holds a user name or password"),
        ({"model": ""}, "model: expected"),
        ({"concurrency": 0}, "concurrency: expected at least 1"),
        ({"timeout": 0}, "timeout: expected"),
        ({"max_retries": -1}, "max_retries: expected"),
        ({"limit_key": "tokens"}, "limit_key: expected max_tokens or"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        Endpoint(**{"base_url": "http://server/v1", "model": "tiny", **options})
    assert "secret" not in str(caught.value)


def test_one_endpoint_serves_several_event_loops() -> None:
    endpoint = Server(echo).endpoint()
    for _ in range(2):
        assert len(asyncio.run(endpoint.generate(asked(1), Sampling(), "me"))) == 5
