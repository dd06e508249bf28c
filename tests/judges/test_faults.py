"""Every fault of an endpoint ends in a verdict, and no reply that arrived is ever asked for again."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from em.judges.base import REASONS
from tests.judges.fake_server import Draws, FakeJudge, answers, score, serving, worth

COUNT = 1000
RETRIES, ATTEMPTS = 2, 3
KINDS = "429 429s 500 timeout truncated empty no_logprobs content_filter words slow".split()
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
    assert [s.reason for s in asyncio.run(judged(again, tmp_path / "c.sqlite"))][3] == reasons[3]
    lost = {n for n in range(COUNT) if reasons[n] not in (None, *CACHED) or "filtered" == plan_of(n)}
    assert set(number_of([m for m in again.calls if "is worth" in m])) == lost


def plan_of(number: int) -> str | None:
    return next((kind for mark, kind in ALWAYS.items() if mark == f"answer {number} is"), None)


def number_of(messages: list[str]) -> list[int]:
    return [int(re.search(r"answer (\d+) is", message)[1]) for message in messages]
