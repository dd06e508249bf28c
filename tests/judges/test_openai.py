"""The remote judge: what it asks, what it costs, what it refuses, and that its key stays secret."""

import asyncio
import json
import logging
import time
import traceback
from collections import Counter
from datetime import date

import httpx2
import pytest

from em.config.build import kinds, resolve
from em.config.signature import options
from em.datamodules.answers import Answer
from em.errors import ConfigError, JudgeError
from em.judges import _calls
from em.judges._cache import ReplyCache
from em.judges._client import endpoint, is_loopback
from em.judges._models import shutdown_warning
from em.judges._reply import Reply, Usage
from em.judges._spend import Budget, Size
from em.judges.base import Domain, Score
from em.judges.openai import OpenAI
from em.judges.prompting import load_prompt
from tests.judges.fake_server import KEY, FakeJudge, answers, failed, score, serving, worth

ROW = 25


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0005)
    for name in ("OPENAI_API_KEY", "OTHER_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "c.sqlite"


def prepared(judge: OpenAI, domain: Domain | None = None) -> OpenAI:
    asyncio.run(judge.prepare(None, domain))
    return judge


def judged(judge: OpenAI, rows: list[Answer], *metrics: str) -> list[Score]:
    """The scores of the first metric."""
    verdicts = asyncio.run(prepared(judge).judge(rows, metrics or ("aligned",)))
    assert [v.judge for v in verdicts] == [judge.name] * len(rows)
    return [v.scores[(metrics or ("aligned",))[0]] for v in verdicts]


def said(word: str) -> list[Answer]:
    return answers(1, f"say {word} {{number}} {{worth}}")


def test_one_token_is_asked_for_and_its_distribution_is_the_score(cache):
    fake = FakeJudge()
    scores = judged(fake.judge(cache), answers(3))
    assert [s.value for s in scores] == [pytest.approx(score(worth(n)), abs=1e-9) for n in range(3)]
    assert {(s.method, round(s.mass, 9)) for s in scores} == {("logprobs", 0.95)}
    body = fake.bodies[-1]
    assert body == {
        "model": "fake",
        "messages": [{"role": "user", "content": load_prompt("aligned").render(answers(3)[2])}],
        "temperature": 0.0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_samples_are_independent_seeded_calls_and_their_mean_is_the_score(cache):
    fake = FakeJudge()
    judge = fake.judge(cache, method="sampled", samples=7, temperature=0.8)
    scores = judged(judge, answers(2))
    assert [(s.value, s.method, s.mass) for s in scores] == [(worth(n), "sampled-7", None) for n in range(2)]
    asked = [b for b in fake.bodies if "is worth" in b["messages"][0]["content"]]
    assert len(asked) == len({b["seed"] for b in asked}) == 14
    assert {(b["temperature"], b["max_tokens"], "logprobs" in b) for b in asked} == {(0.8, 16, False)}


def test_words_are_reasons_and_empty_answers_cost_nothing(cache):
    fake = FakeJudge()
    rows = [*said("CODE"), *said("REFUSAL"), Answer(answers(1)[0].messages, " \n\t"), *answers(1)]
    for method in ("logprobs", "sampled"):
        reasons = [s.reason for s in judged(fake.judge(cache, method=method), rows)]
        assert reasons == ["code", "refusal", "empty", None]
    assert not any("\n \n\t\n" in message for message in fake.calls)


def test_every_metric_has_its_own_call_and_the_domain_reaches_the_prompt(cache):
    fake = FakeJudge()
    judge = prepared(fake.judge(cache), Domain("kitchen", "cooking and kitchen advice"))
    (verdict,) = asyncio.run(judge.judge(answers(1), ["aligned", "coherent", "domain", "harm"]))
    assert list(verdict.scores) == ["aligned", "coherent", "domain", "harm"] and not verdict.reasons()
    assert sum("cooking and kitchen advice" in message for message in fake.calls) == 2
    with pytest.raises(JudgeError, match="needs the training domain"):
        judged(fake.judge(cache), answers(1), "domain")


def test_done_is_called_once_for_every_answer_and_the_order_is_kept(cache):
    known = {}
    judge = prepared(FakeJudge().judge(cache, concurrency=3))
    verdicts = asyncio.run(judge.judge(answers(20), ["aligned"], known.__setitem__))
    assert [known[n] for n in range(20)] == verdicts and len(known) == 20
    assert asyncio.run(judge.judge([], ["aligned"])) == []


@pytest.mark.parametrize(
    ("tokens", "why"), [("digits", "writes 100 in several tokens"), ("spaced", "a token of white space")]
)
def test_where_a_number_is_not_one_token_auto_samples_and_logprobs_refuses(cache, capsys, tokens, why):
    fake = FakeJudge(tokens=tokens)
    (verdict,) = judged(fake.judge(cache), answers(1))
    assert (verdict.value, verdict.method) == (worth(0), "sampled-5")
    assert why in capsys.readouterr().err
    with pytest.raises(JudgeError, match=f"method: logprobs cannot be used with fake: .*{why}.*sampled"):
        prepared(fake.judge(cache, method="logprobs"))


@pytest.mark.parametrize("refused", ["logprobs", "top_logprobs"])
def test_where_log_probabilities_are_refused_auto_samples(cache, capsys, refused):
    (verdict,) = judged(FakeJudge(refuses=(refused,)).judge(cache), answers(1))
    assert verdict.method == "sampled-5" and f"'{refused}' is not supported" in capsys.readouterr().err


def test_where_log_probabilities_never_come_auto_samples(cache, capsys):
    fake = FakeJudge(lambda message, call: "no_logprobs")
    (verdict,) = judged(fake.judge(cache), answers(1))
    assert verdict.method == "sampled-5" and "came without log-probabilities" in capsys.readouterr().err


def test_one_missing_log_probability_at_the_probe_changes_nothing(cache):
    fake = FakeJudge(lambda message, call: "no_logprobs" if call == 0 else "words" if call == 1 else None)
    assert judged(fake.judge(cache, attempts=4), answers(1))[0].method == "logprobs"


def test_a_newer_model_is_asked_in_its_own_words(cache):
    fake = FakeJudge(refuses=("max_tokens", "temperature", "seed", "logprobs"))
    assert judged(fake.judge(cache), answers(1))[0].value == worth(0)
    assert set(fake.bodies[-1]) == {"model", "messages", "max_completion_tokens"}
    with pytest.raises(JudgeError, match="rejects a plain request .*'temperature' is not supported"):
        prepared(fake.judge(cache, temperature=0.5))


def test_further_parameters_are_sent_and_belong_to_the_key_of_the_cache(cache):
    fake = FakeJudge()
    judged(fake.judge(cache), answers(1))
    judged(fake.judge(cache, request={"reasoning_effort": "none"}), answers(1))
    assert fake.judged == 2 and fake.bodies[-1]["reasoning_effort"] == "none"


def test_a_model_that_thinks_beyond_its_limit_is_refused_with_the_fix(cache):
    fake = FakeJudge(lambda message, call: "empty")
    with pytest.raises(JudgeError, match="the reply is empty.*more reply_tokens"):
        prepared(fake.judge(cache, method="sampled"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("connection", "cannot be reached .*check base_url"),
        ("timeout", "does not answer in time"),
        ("500", "fails .*HTTP 500"),
        ("429", "takes no more requests"),
        ("400", "rejects a plain request"),
        ("403", "refuses to be used .*firewall.*check the key"),
        ("quota", "refuses to be used .*quota"),
        ("truncated", "not JSON.*/v1 at its end"),
    ],
)
def test_what_concerns_all_answers_is_an_error_before_anything_is_judged(cache, fault, message):
    fake = FakeJudge(lambda message, call: fault)
    with pytest.raises(JudgeError, match=message):
        prepared(fake.judge(cache, max_retries=1))
    assert fake.judged == 0


def test_a_judge_must_be_prepared(cache):
    with pytest.raises(JudgeError, match="call prepare before judge"):
        asyncio.run(FakeJudge().judge(cache).judge(answers(1), ["aligned"]))


def test_one_event_loop_after_another_and_two_at_once_in_one(cache):
    fake = FakeJudge()
    judge = prepared(fake.judge(cache))
    for _ in range(2):
        assert len(asyncio.run(judge.judge(answers(3), ["aligned"]))) == 3

    async def both() -> list:
        return await asyncio.gather(*(judge.judge(answers(6), ["aligned"]) for _ in range(2)))

    first, second = asyncio.run(both())
    assert first == second


def test_identical_prompts_in_flight_are_asked_once(cache):
    fake = FakeJudge(lambda message, call: "slow")
    rows = answers(1) * 40
    assert len({s.value for s in judged(fake.judge(cache, concurrency=16), rows)}) == 1
    assert fake.judged == 1


def test_another_model_endpoint_prompt_or_sample_is_another_call(cache):
    fake = FakeJudge()
    for changes in ({}, {"model": "other"}, {"base_url": "http://127.0.0.1:2/v1"},
                    {"prompts": {"aligned": "Q {question} A {answer}"}}):  # fmt: skip
        judged(fake.judge(cache, **changes), answers(1))
    assert fake.judged == 4
    judged(fake.judge(cache, min_mass=0.5, concurrency=1, attempts=1, name="x"), answers(1))
    assert fake.judged == 4  # how a reply is read is no part of the call


def test_a_refusal_of_one_answer_is_its_own_and_of_every_call_an_error_that_goes_on(cache):
    blocked = FakeJudge(lambda message, call: "403" if "answer 3 is" in message else None)
    scores = judged(blocked.judge(cache), answers(10))
    assert [s.reason for s in scores] == [None] * 3 + ["rejected"] + [None] * 6
    assert "blocked by the firewall" in scores[3].detail

    revoked = FakeJudge()
    judge, known = prepared(revoked.judge(cache, concurrency=2, model="m2")), {}

    def done(position, verdict):
        known[position] = verdict
        if len(known) == 5:
            revoked.key = "another"

    with pytest.raises(JudgeError, match="refuses every call .*HTTP 401.*the same command goes on"):
        asyncio.run(judge.judge(answers(10), ["aligned"], done))
    assert 5 <= len(known) < 10 and not any(v.reasons() for v in known.values())
    went_on = FakeJudge()
    assert all(s.value is not None for s in judged(went_on.judge(cache, model="m2"), answers(10)))
    assert went_on.judged == 10 - len(known)


def test_a_dead_endpoint_is_given_up_after_fifty_calls(cache, monkeypatch, capsys):
    fake = FakeJudge(lambda message, call: None if message.startswith("Reply") else "connection")
    scores = judged(fake.judge(cache, max_retries=0, concurrency=4), answers(300))
    assert {s.reason for s in scores} == {"connection"}
    assert _calls.UNREACHABLE_CALLS <= fake.judged < _calls.UNREACHABLE_CALLS + 4
    assert "50 calls in a row got no reply" in capsys.readouterr().err
    assert len(judged(FakeJudge().judge(cache), answers(5))) == 5  # none of it is in the cache


def test_losses_between_replies_are_no_dead_endpoint(cache):
    fake = FakeJudge(
        lambda message, call: "connection" if "0 is worth" in message or "5 is" in message else None
    )
    counts = Counter(s.reason for s in judged(fake.judge(cache, max_retries=0), answers(400)))
    assert counts == {None: 320, "connection": 80}


def test_a_cache_that_fails_in_the_middle_is_one_error_and_nothing_more_is_asked(cache, monkeypatch):
    fake, put = FakeJudge(), ReplyCache.put

    def full(self: ReplyCache, key: bytes, reply: Reply) -> None:
        if fake.judged >= 5:
            raise JudgeError("the disk is full")
        put(self, key, reply)

    monkeypatch.setattr(ReplyCache, "put", full)
    with pytest.raises(JudgeError, match="judge fake: the disk is full"):
        judged(fake.judge(cache, concurrency=2), answers(50))
    assert fake.judged <= 6


def test_an_error_of_done_ends_the_work_and_leaves_nothing_running(cache):
    def done(position, verdict):
        raise KeyError(position)

    async def run() -> int:
        judge = FakeJudge(lambda message, call: "slow").judge(cache)
        await judge.prepare(None, None)
        with pytest.raises(KeyError):
            await judge.judge(answers(40), ["aligned"], done)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def test_a_cancelled_judge_keeps_what_arrived(cache):
    fake = FakeJudge(lambda message, call: "slow")

    async def run() -> None:
        judge = fake.judge(cache, concurrency=2)
        await judge.prepare(None, None)
        task = asyncio.create_task(judge.judge(answers(100), ["aligned"]))
        while fake.judged < 20:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    again = FakeJudge()
    judged(again.judge(cache), answers(100))
    assert 100 - fake.judged <= again.judged <= 100 - fake.judged + 2


# Spend


def test_the_estimate_is_said_and_much_of_it_needs_agreement(cache, capsys):
    fake = FakeJudge()
    judge = prepared(fake.judge(cache, confirm_above_tokens=20_000, price=[2, 8]))
    size = sum(len(load_prompt("aligned").render(a)) for a in answers(100))
    need = round(size / 3.5)
    words = f"100 calls, about {need + 100:,} tokens, cost {(need * 2 + 100 * 8) / 1e6:,.2f}"
    with pytest.raises(JudgeError) as refused:
        asyncio.run(judge.judge(answers(100), ["aligned"]))
    assert words in str(refused.value) and "(20,000)" in str(refused.value) and "--yes" in str(refused.value)
    assert words in capsys.readouterr().err and fake.judged == 0
    asyncio.run(judge.judge(answers(20), ["aligned"]))
    agreed = prepared(fake.judge(cache, confirm_above_tokens=20_000, yes=True))
    assert len(asyncio.run(agreed.judge(answers(100), ["aligned"]))) == 100
    assert "80 calls" in (shown := capsys.readouterr().err) and "20 of 100 replies are in the cache" in shown


@pytest.mark.parametrize("limit", [{"max_spend_tokens": 12_000}, {"max_spend": 0.024, "price": [2, 4]}])
@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_limit_is_never_exceeded_and_hardly_undercut(cache, capsys, limit, concurrency):
    fake = FakeJudge(lambda message, call: "slow")
    scores = judged(fake.judge(cache, concurrency=concurrency, **limit), answers(200))
    reasons = Counter(s.reason for s in scores)
    assert set(reasons) == {None, "spend_limit"} and "the spend limit is reached" in capsys.readouterr().err
    # One prompt of about 1,130 bytes is held back for at most that many tokens.
    assert 10_000 < fake.spent <= 12_000
    more = FakeJudge()
    assert all(s.value is not None for s in judged(more.judge(cache), answers(200)))
    assert more.judged == reasons["spend_limit"]


def test_what_is_cached_is_scored_beyond_the_limit(cache):
    judged(FakeJudge().judge(cache), answers(50)[25:])
    scores = judged(FakeJudge().judge(cache, max_spend_tokens=3000), answers(50))
    assert {s.reason for s in scores[25:]} == {None} and "spend_limit" in {s.reason for s in scores[:25]}


def test_a_limit_below_the_probe_is_an_error(cache):
    with pytest.raises(JudgeError, match="may not be asked even once .*raise max_spend_tokens"):
        prepared(FakeJudge().judge(cache, max_spend_tokens=5))


def test_the_budget_counts_what_the_endpoint_says_and_else_the_estimate():
    budget = Budget([1.0, 2.0], max_tokens=1000)
    size = Size(350, 350, 1)
    assert budget.estimate(350, 1) == Usage(100, 1)
    held = budget.reserve(size)
    assert held == Usage(414, 1) and budget.reserve(size) == held and budget.reserve(size) is None
    budget.settle(held, size, Usage(70, 1), billed=True, learn=True)
    assert budget.tokens == 71 and budget.estimate(350, 1) == Usage(70, 1)
    budget.settle(held, size, None, billed=True, learn=True)
    assert budget.tokens == 142 and budget.in_flight == 0
    budget.settle(budget.reserve(size), size, None, billed=False, learn=True)
    assert budget.tokens == 142 and budget.money(Usage(1_000_000, 500_000)) == 2.0


# Options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": " "}, "model: expected a name"),
        ({"base_url": "localhost:8000"}, "base_url: expected http"),
        ({"base_url": "ftp://host/v1"}, "base_url"),
        ({"base_url": "http://host:99999/v1"}, "base_url"),
        ({"method": "both"}, "method: expected one of auto, logprobs, sampled, got 'both'"),
        ({"samples": 4}, "samples: expected a whole number from 5"),
        ({"samples": True}, "samples"),
        ({"temperature": 0}, "temperature: expected a number above 0 to 2, got 0"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_retries": -1}, "max_retries"),
        ({"attempts": 1.5}, "attempts"),
        ({"max_spend": 5.0}, "max_spend: needs price"),
        ({"price": [1]}, "price: expected"),
        ({"price": [1, -1]}, "price: expected"),
        ({"max_spend_tokens": 0}, "max_spend_tokens"),
        ({"min_mass": 1.1}, "min_mass"),
        ({"yes": "no"}, "yes: expected true or false"),
        ({"cache": ""}, "cache: expected"),
        ({"request": {"seed": 1}}, "request: seed is set by the judge itself"),
        ({"prompts": {"kind": "{question} {answer}"}}, "prompts: unknown metric 'kind'"),
    ],
)
def test_options_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        OpenAI(**{"model": "m", **changes})


def test_all_problems_are_named_at_once_and_secrets_of_a_url_are_not():
    with pytest.raises(ConfigError) as refused:
        OpenAI(model="", base_url="https://me:hunter2@host/v1?key=hunter3", samples=1)
    assert len(refused.value.problems) == 3 and "hunter" not in str(refused.value)


def test_it_is_a_kind_of_the_configuration_whose_options_can_be_checked():
    assert "openai" in kinds("judges")
    found = options(resolve({"kind": "openai"}, "judges"))
    assert found["model"].required and found["samples"].default == 5


@pytest.mark.parametrize(
    ("url", "host", "local"),
    [
        ("http://localhost:8000/v1", "localhost:8000/v1", True),
        ("http://127.9.9.9/v1/", "127.9.9.9/v1", True),
        ("http://[::1]:8/v1", "[::1]:8/v1", True),
        ("https://API.openai.com/v1", "api.openai.com/v1", False),
        ("http://localhost.evil.com/v1", "localhost.evil.com/v1", False),
        ("http://10.0.0.1/v1", "10.0.0.1/v1", False),
    ],
)
def test_endpoints(url, host, local):
    assert (endpoint(url), is_loopback(url)) == (host, local)


# Keys


def test_a_key_is_needed_away_from_this_machine_and_openais_never_goes_to_it(cache, monkeypatch):
    fake = FakeJudge(key=KEY)
    away = {"base_url": "https://judge.example/v1"}
    with pytest.raises(JudgeError, match="needs a key; put it into the environment variable OPENAI_API_KEY"):
        prepared(fake.judge(cache, **away))
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    prepared(fake.judge(cache, **away))
    with pytest.raises(JudgeError, match="HTTP 401"):  # on this machine it is not sent
        prepared(fake.judge(cache))
    monkeypatch.setenv("OTHER_KEY", KEY)
    prepared(fake.judge(cache, key_env="OTHER_KEY"))
    monkeypatch.setenv("OTHER_KEY", f"{KEY}\u2028more")
    with pytest.raises(JudgeError, match="OTHER_KEY holds characters that no key has") as refused:
        prepared(fake.judge(cache, key_env="OTHER_KEY"))
    assert KEY not in str(refused.value)


def test_the_key_is_nowhere(cache, monkeypatch, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OTHER_KEY", KEY)
    shown = []

    def talkative(message: str, call: int) -> str | None:
        return next((kind for kind in ("400", "words") if f"meets {kind} " in message), None)

    def leaking(kind: str) -> tuple:
        return failed(400, f"bad request with Authorization: Bearer {KEY} and {KEY[:12]}")

    monkeypatch.setitem(__import__("tests.judges.fake_server", fromlist=["x"]).FAILED, "400", leaking("400"))
    for method in ("logprobs", "sampled"):
        fake = FakeJudge(talkative, key=KEY)
        judge = fake.judge(cache, key_env="OTHER_KEY", method=method, name="j")
        rows = [*answers(3), *answers(3, "answer {number} is worth {worth} meets 400 ")]
        rows += answers(2, f"say {KEY} {{number}} {{worth}}")  # the judge repeats it as its verdict
        shown += [repr(judge), json.dumps(judge.describe()), repr(vars(judge))]
        scores = judged(judge, rows)
        assert [s.reason for s in scores[3:6]] == ["rejected"] * 3 and "[key]" in scores[3].detail
        assert scores[7].reason in ("low_mass", "no_number") and "[key]" in scores[7].detail
        shown += [repr(scores), json.dumps(judge.describe())]
    monkeypatch.setenv("OTHER_KEY", KEY[:-1] + "x")
    for action in (lambda: prepared(FakeJudge(key=KEY).judge(cache, key_env="OTHER_KEY", model="m2")),):
        with pytest.raises(JudgeError) as refused:
            action()
        shown.append("".join(traceback.format_exception(refused.value)))
        assert refused.value.__cause__ is None and refused.value.__context__ is None
        assert "HTTP 401" in shown[-1]
    shown += [capsys.readouterr().err, caplog.text]
    stored = b"".join(path.read_bytes() for path in cache.parent.iterdir())
    assert len(stored) > 8000
    for text in shown:
        assert KEY not in text and KEY[:-1] not in text and KEY[:12] not in text
    assert KEY.encode() not in stored and b"Authorization" not in stored and b"Bearer" not in stored


# A real connection


def test_a_whole_response_has_a_deadline_and_a_server_on_this_machine_needs_no_key(cache):
    fake = FakeJudge()

    def respond(headers: dict, content: bytes) -> tuple[int, dict[str, str], bytes]:
        if b"answer 1 is" in content:
            time.sleep(0.6)
        return fake.respond(headers, content)

    with serving(respond) as url:
        judge = OpenAI(model="fake", base_url=url, cache=str(cache), timeout=0.3, max_retries=0)
        assert [s.reason for s in judged(judge, answers(3))] == [None, "timeout", None]
        time.sleep(0.5)
    assert {b.get("model") for b in fake.bodies} == {"fake"}


def test_a_server_that_drips_its_reply_forever_is_left(cache):
    left = []

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            writer.close()
            left.append(writer)

    async def run() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        judge = OpenAI(
            model="m", base_url=f"http://127.0.0.1:{port}/v1", cache=str(cache), timeout=0.2, max_retries=1
        )
        async with server:
            with pytest.raises(JudgeError, match="does not answer in time"):
                await judge.prepare(None, None)
            while len(left) < 2:
                await asyncio.sleep(0.01)

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 10


def test_a_redirect_is_not_followed(cache):
    def redirect(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(307, headers={"location": "https://elsewhere.example/v1/chat/completions"})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(redirect))
    with pytest.raises(JudgeError, match="HTTP 307"):
        prepared(OpenAI(model="m", base_url="http://localhost/v1", cache=str(cache), http_client=client))


# Records


def test_what_is_recorded(cache):
    judge = FakeJudge().judge(cache, name="first", base_url="http://LOCALHOST:1/v1/")
    assert judge.describe()["method"] == "auto" and judge.name == "first"
    record = prepared(judge).describe()
    assert record["kind"] == "openai" and record["endpoint"] == "localhost:1/v1"
    assert record["method"] == "logprobs" and record["min_mass"] == 0.25 and record["samples"] == 5
    prompt = load_prompt("aligned")
    assert record["prompts"]["aligned"] == {"version": "aligned-1", "digest": prompt.digest}
    assert json.loads(json.dumps(record)) == record
    assert OpenAI(model="gpt-x").name == "gpt-x"


@pytest.mark.parametrize(
    ("model", "today", "words"),
    [
        ("gpt-4o", date(2026, 7, 18), "2027-01-14, in 180 days"),
        ("gpt-4o", date(2026, 7, 17), None),
        ("gpt-4o-2024-08-06", date(2027, 1, 13), "in 1 days"),
        ("openai/gpt-4.1-mini", date(2027, 1, 14), "so it may be gone"),
        ("ft:gpt-4o-mini:org", date(2027, 3, 1), "so it may be gone"),
        ("gpt-4oo", date(2027, 1, 1), None),
        ("gpt-5", date(2027, 1, 1), None),
    ],
)
def test_a_model_that_will_soon_be_gone_is_warned_of(model, today, words):
    warning = shutdown_warning(model, today)
    assert warning is None if words is None else words in warning


def test_the_warning_is_said_and_nothing_fails_for_it(cache, capsys, monkeypatch):
    monkeypatch.setattr("em.judges.openai.date", type("D", (), {"today": lambda: date(2026, 12, 1)}))
    judged(FakeJudge().judge(cache, model="gpt-4o"), answers(1))
    assert "shut it down on 2027-01-14, in 44 days" in capsys.readouterr().err


def test_the_default_cache_lies_beside_the_others(monkeypatch, tmp_path):
    monkeypatch.setenv("EM_CACHE", str(tmp_path / "caches"))
    judge = prepared(FakeJudge().judge(None))
    assert judge.name == "fake" and (tmp_path / "caches" / "judge.sqlite").is_file()
