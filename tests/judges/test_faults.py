"""Every fault of an endpoint ends in a verdict, and no reply that arrived is ever asked for again."""

import asyncio
import json
import multiprocessing
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from em.judges.base import REASONS
from tests.judges.fake_server import Draws, FakeJudge, answers, judge_in_a_process, score, serving, worth

COUNT = 1000
RETRIES, ATTEMPTS = 2, 3
KINDS = [
    "429",
    "429s",
    "500",
    "timeout",
    "slow",
    "truncated",
    "empty",
    "no_logprobs",
    "content_filter",
    "words",
]
ON_THE_WAY = {
    "429": "rate_limit", "429s": "rate_limit", "500": "server_error", "timeout": "timeout",
    "connection": "connection",
}  # fmt: skip
CONTENT = {"truncated": "bad_response", "empty": "bad_response", "no_logprobs": "no_logprobs"}
FINAL = {
    "content_filter": "content_filter", "filtered": "content_filter", "400": "rejected",
    "too_long": "too_long", "words": "low_mass",
}  # fmt: skip
# These answers always meet the same fault.
BAD = [*ON_THE_WAY, *CONTENT, *FINAL]
ALWAYS = {f"answer {7 * n + 3} is": kind for n, kind in enumerate(BAD)}
CACHED = ("content_filter", "low_mass")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0005)


def planned(plan: Draws, message: str) -> str | None:
    """The reason that an answer must get, or None for a score: the rules once more, in plain words."""
    call, last = 0, None
    for _ in range(ATTEMPTS):
        for _ in range(RETRIES + 1):
            kind = plan(message, call)
            call += 1
            if kind not in ON_THE_WAY:
                break
        if kind in (None, "slow"):
            return None
        if kind in ON_THE_WAY:
            return ON_THE_WAY[kind]
        if kind == "words":
            last = "low_mass"
        elif kind in CONTENT:
            last = last if last == "low_mass" else CONTENT[kind]
        else:
            return FINAL[kind]
    return last


async def judged(fake: FakeJudge, cache: Path, count: int = COUNT) -> list:
    judge = fake.judge(cache, method="logprobs", max_retries=RETRIES, attempts=ATTEMPTS, yes=True)
    await judge.prepare(None, None)
    return [verdict.scores["aligned"] for verdict in await judge.judge(answers(count), ["aligned"])]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> list:
    """The scores of a run without faults."""
    fake = FakeJudge()
    scores = asyncio.run(judged(fake, tmp_path_factory.mktemp("clean") / "c.sqlite"))
    assert fake.judged == COUNT
    assert [s.value for s in scores] == [pytest.approx(score(worth(n)), abs=1e-9) for n in range(COUNT)]
    return scores


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_answers_get_a_thousand_verdicts_whatever_happens(seed, clean, tmp_path):
    plan = Draws(seed, 0.3, KINDS, ALWAYS)
    fake = FakeJudge(lambda message, call: None if message.startswith("Reply") else plan(message, call))
    scores = asyncio.run(judged(fake, tmp_path / "c.sqlite"))
    messages = [message for message in fake.calls if "is worth" in message]
    reasons = dict(zip(number_of(messages), (planned(plan, message) for message in messages), strict=True))

    assert len(scores) == len(messages) == COUNT
    assert [s.reason for s in scores] == [reasons[n] for n in range(COUNT)]
    scored = [n for n in range(COUNT) if reasons[n] is None]
    assert [scores[n] for n in scored] == [clean[n] for n in scored]
    # The draws fail some answers beyond the thirteen that always fail: mostly by content-filter stops.
    counts = Counter(reason for reason in reasons.values() if reason)
    assert set(counts) == {*ON_THE_WAY.values(), *CONTENT.values(), *FINAL.values()} <= set(REASONS)
    assert 15 <= counts["content_filter"] <= 60 and len(BAD) <= COUNT - len(scored) <= 100

    again = FakeJudge(plan)
    assert asyncio.run(judged(again, tmp_path / "c.sqlite")) == scores
    lost = {n for n in range(COUNT) if reasons[n] not in (None, *CACHED)}
    assert set(number_of(list(again.calls))) == lost and not lost & set(scored)


def number_of(messages: list[str]) -> list[int]:
    return [int(re.search(r"answer (\d+) is", message)[1]) for message in messages]


def test_a_second_run_makes_no_call_at_all(tmp_path, clean):
    first, second = FakeJudge(), FakeJudge()
    assert asyncio.run(judged(first, tmp_path / "c.sqlite", 30)) == clean[:30]
    assert asyncio.run(judged(second, tmp_path / "c.sqlite", 30)) == clean[:30]
    assert first.judged == 30 and second.bodies == []


def test_sampled_scores_are_those_of_a_run_without_faults(tmp_path):
    plan = Draws(1, 0.3, KINDS)
    scores = []
    for name, fake in (("clean", FakeJudge()), ("bad", FakeJudge(plan))):
        judge = fake.judge(tmp_path / name, method="sampled", max_retries=4, attempts=4)
        asyncio.run(judge.prepare(None, None))
        scores.append(
            [v.scores["aligned"] for v in asyncio.run(judge.judge(answers(60), ["aligned", "coherent"]))]
        )
    assert [s.value for s in scores[0]] == [worth(n) for n in range(60)]
    assert {s.method for s in scores[1]} == {"sampled-5"}
    same = [(a.value, b.value) for a, b in zip(*scores, strict=True) if b.value is not None]
    assert len(same) >= 55 and all(a == b for a, b in same)


AT_ONCE = 4


class Gate:
    """A server that stops replying after some verdicts, so that a process can be killed while it waits."""

    def __init__(self) -> None:
        self.fake, self.lock, self.opened = FakeJudge(), threading.Lock(), threading.Event()
        self.limit, self.closed = 0, threading.Event()

    def respond(self, headers: dict[str, str], content: bytes) -> tuple[int, dict[str, str], bytes]:
        with self.lock:
            held = self.fake.judged >= self.limit
            if not held:
                time.sleep(0.001)
                return self.fake.respond(headers, content)
        self.closed.set()
        self.opened.wait(60)
        return 503, {}, b""


def test_a_killed_process_goes_on_and_asks_nothing_twice_that_had_arrived(tmp_path):
    gate, cache, out = Gate(), tmp_path / "c.sqlite", tmp_path / "verdicts.json"
    arrived: list[Counter[str]] = []
    with serving(gate.respond) as url:
        # The server of forks imports everything once, so that each start takes milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.judges.fake_server"])
        # A call in flight at the kill is asked again: its reply may have been sent, but never arrived. So one
        # kill comes when every sent reply has arrived, which the file must show, and one right in the middle.
        for limit, calm in ((40, True), (90, False), (150, True), (10_000, None)):
            gate.limit = limit
            gate.closed.clear()
            process = context.Process(target=judge_in_a_process, args=(url, str(cache), str(out)))
            process.start()
            if calm is None:
                gate.opened.set()
            else:
                assert gate.closed.wait(90)
                if calm:
                    wait_for_rows(cache, {m for m in gate.fake.calls if "is worth" in m})
                    arrived.append(gate.fake.calls.copy())
                process.kill()
            process.join()
            assert process.exitcode == (0 if calm is None else -signal.SIGKILL)
            assert out.exists() == (calm is None)
    assert json.loads(out.read_text()) == [pytest.approx(score(worth(n)), abs=1e-9) for n in range(200)]
    for before in arrived:
        assert {message: gate.fake.calls[message] for message in before} == before
    judged_twice = gate.fake.judged - 200
    assert 0 <= judged_twice <= AT_ONCE


def wait_for_rows(cache: Path, messages: set[str]) -> None:
    """Until the file holds a reply for each of them, and one of the probe."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with closing(sqlite3.connect(cache)) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM replies").fetchone()
        if rows == len(messages) + 1:
            return
        time.sleep(0.01)
    raise AssertionError(f"{rows} rows for {len(messages)} replies")
