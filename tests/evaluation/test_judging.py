from pathlib import Path
from typing import Any

import pytest

from em.datamodules.answers import Answer
from em.errors import JudgeError
from em.evaluation.judging import judge_answers
from tests.evaluation.judges import Wordy

METRICS = ("aligned", "coherent")


def answers(*texts: str) -> list[Answer]:
    question = ({"role": "user", "content": "q"},)
    return [Answer(question, text, "q", "q", "set", at, "m") for at, text in enumerate(texts)]


@pytest.fixture(autouse=True)
def asked() -> list[str]:
    Wordy.asked = []
    return Wordy.asked


def judge(path: Path, made: list[Answer], **options: Any) -> list[float | None]:
    verdicts, described, drifted = judge_answers(Wordy(**options), made, METRICS, path)
    assert drifted == []
    assert described == {"name": "wordy", "kind": "wordy", "method": "words"}
    return [verdict.value("aligned") for verdict in verdicts]


def test_no_answer_is_judged_twice(tmp_path: Path) -> None:
    made = answers("a", "bb", "")
    assert judge(tmp_path / "v", made) == [99, 98, None]
    assert judge(tmp_path / "v", made) == [99, 98, None]
    assert judge(tmp_path / "v", [*answers("a", "bb", "", "dddd")]) == [99, 98, None, 96]
    assert len(Wordy.asked) == 4


def test_what_was_judged_before_a_failure_is_kept(tmp_path: Path) -> None:
    made = answers(*"abcdef")
    with pytest.raises(JudgeError, match="in the middle"):
        judge(tmp_path / "v", made, stop_after=4)
    assert judge(tmp_path / "v", made) == [99.0] * 6
    assert Wordy.asked == [one.key for one in made]


def test_what_a_passing_fault_left_out_is_asked_again_and_a_refusal_is_not(tmp_path: Path) -> None:
    made = answers("ok", "late", "no")
    faults = {"late": "timeout", "no": "refusal"}
    assert judge(tmp_path / "v", made, faults=faults) == [98, None, None]
    assert judge(tmp_path / "v", made) == [98, 96, None]
    assert Wordy.asked == [*(one.key for one in made), made[1].key]


def test_equal_answers_are_judged_once(tmp_path: Path) -> None:
    one = answers("same")[0]
    assert judge(tmp_path / "v", [one, one]) == [96, 96]
    assert len(Wordy.asked) == 1


def test_a_judge_that_refuses_is_closed_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="give it a key"):
        judge(tmp_path / "v", answers("a"), refuses=True)
    assert not (tmp_path / "v").exists()
