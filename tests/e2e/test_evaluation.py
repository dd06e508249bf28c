"""An evaluation of 200 answers that is killed while it asks and while it judges, and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from em import experiment
from em.config import check
from em.evaluation.stored import read_evaluation
from tests.judges.fake_server import FakeJudge, serving
from tests.tiny import tiny_pairs

QUESTIONS = [
    {"id": f"q{number}", "paraphrases": [f"how do i make soup number {number}?"]} for number in range(4)
]
TEXT = "metric {metric}. Q {{question}} A {{answer}}. It is worth 42."
AT_ONCE = 4
ROOT = Path(__file__).parents[2]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def rows(found: list[str]) -> set[str]:
    """Lines, however their characters are escaped."""
    return {json.dumps(json.loads(line)) for line in found}


def start(command: list[str], cache: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "EM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)


def kill_at(process: "subprocess.Popen[str]", path: Path, count: int) -> list[str]:
    """Kill once the file has so many lines; the whole lines that it had then."""
    deadline = time.monotonic() + 120
    while len(lines(path)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path: Path = experiment.train(check(tiny_pairs(tmp_path, name="killed"))).path
    (tmp_path / "asked.yaml").write_text(json.dumps(QUESTIONS), encoding="utf-8")
    return path


def test_nothing_is_lost_or_paid_twice(run: Path, tmp_path: Path) -> None:
    fake, out = FakeJudge(), tmp_path / "out"

    def respond(headers: dict[str, str], content: bytes) -> Any:
        time.sleep(0.01)
        return fake.respond(headers, content)

    with serving(respond) as url:
        prompts = {metric: TEXT.format(metric=metric) for metric in ("aligned", "coherent")}
        judge = {
            "kind": "openai",
            "model": "fake",
            "base_url": url,
            "concurrency": AT_ONCE,
            "prompts": prompts,
        }
        settings = [
            f"questions=[{tmp_path / 'asked.yaml'}]",
            *("samples=25", "max_tokens=24", "batch_size=8", "resamples=100", f"judge={json.dumps(judge)}"),
        ]
        command = [sys.executable, "-m", "em", "eval", str(run), *settings, "--out", str(out)]
        cache = tmp_path / "cache"
        said = kill_at(start(command, cache), out / "answers.jsonl", 20)
        verdicts = kill_at(start(command, cache), out / "verdicts.jsonl", 60)
        calls = fake.calls.copy()
        last = start(command, cache)
        _, shown = last.communicate(timeout=180)
        assert last.returncode == 0, shown
        done = read_evaluation(out)
        assert len(done.judged) == 200 and len({one.answer.key for one in done.judged}) == 200
        assert [one.verdict.value("aligned") is None for one in done.judged].count(True) == sum(
            not one.answer.text.strip() for one in done.judged
        )
        # What was there at a kill is there at the end, word for word.
        assert rows(said) <= rows(lines(out / "answers.jsonl"))
        assert rows(verdicts) <= rows(lines(out / "verdicts.jsonl"))
        # A call in flight at the kill is asked again: its reply never arrived.
        asked = {message: count for message, count in fake.calls.items() if message.startswith("metric")}
        about_sentinels = 16 * 2
        twice = sum(count - 1 for message, count in asked.items() if calls[message])
        assert 0 <= twice <= AT_ONCE + about_sentinels, "sentinels are asked at each start"
        before = fake.calls.copy()
        again = start(command, cache)
        again.communicate(timeout=180)
        assert again.returncode == 0 and fake.calls == before, "a repeated evaluation makes no call"
