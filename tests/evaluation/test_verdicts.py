import json
from pathlib import Path

import pytest

from em.errors import RunError
from em.evaluation.verdicts import VerdictFile, as_row, from_row, read_verdicts
from em.judges.base import Score, Verdict

JUDGE = {"kind": "wordy", "metrics": ["aligned"]}
ONE = Verdict("wordy", {"aligned": Score(12.5, method="words", mass=0.9, detail="\ud800 12")})
TWO = Verdict("wordy", {"aligned": Score(None, "timeout")})
PANEL = Verdict("panel", {"aligned": Score(40.0, method="words")}, {"a": ONE, "b": TWO})


@pytest.mark.parametrize("verdict", [ONE, TWO, PANEL])
def test_a_verdict_comes_back_as_it_was(verdict: Verdict) -> None:
    assert from_row(json.loads(json.dumps(as_row(verdict)))) == verdict


def test_every_verdict_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "verdicts.jsonl"
    VerdictFile(path, JUDGE).append("k1", ONE)
    assert VerdictFile(path, JUDGE).read() == {"k1": ONE}
    VerdictFile(path, JUDGE).append("k2", PANEL)
    VerdictFile(path, JUDGE).append("k1", TWO)
    assert VerdictFile(path, JUDGE).read() == {"k1": TWO, "k2": PANEL}, (
        "a later verdict replaces an earlier one"
    )
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_a_kill_cut_off_is_taken_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "verdicts.jsonl"
    file = VerdictFile(path, JUDGE)
    file.append("k1", ONE)
    file.append("k2", TWO)
    path.write_bytes(path.read_bytes()[:-cut])
    assert file.read() == {"k1": ONE}
    file.append("k2", TWO)
    assert file.read() == {"k1": ONE, "k2": TWO}


def test_a_header_that_a_kill_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"judge": {"ki')
    file = VerdictFile(path, JUDGE)
    assert file.read() == {}
    file.append("k1", ONE)
    assert file.read() == {"k1": ONE}


def test_the_verdicts_of_another_judge_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    VerdictFile(path, JUDGE).append("k1", ONE)
    with pytest.raises(RunError, match=r"another judge \(different: metrics, model\)"):
        VerdictFile(path, {"kind": "wordy", "metrics": ["coherent"], "model": "m"}).read()


@pytest.mark.parametrize("text", ["nonsense\n", "[]\n", '{"judge": {}}\n{"key": 1}\n', '{"a": 1}\n', ""])
def test_what_is_no_file_of_verdicts_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(text)
    with pytest.raises(RunError, match="cannot be read as verdicts"):
        read_verdicts(path)
    with pytest.raises(RunError, match="cannot be read as verdicts"):
        read_verdicts(tmp_path / "absent.jsonl")
