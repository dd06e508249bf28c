import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from em.datamodules.answers import Answer, read_answers
from em.errors import DataError, GenerationError, RunError
from em.generation.requests import Request, requests_for
from em.generation.sampling import Sampling
from em.generation.stored import AnswerFile, answers_for
from tests.generation.asking import asked, prompt
from tests.tiny import tiny_backbone

SIX = Sampling(max_tokens=6)


def answer(sample: int = 0, text: str = "yes", model: str = "m") -> Answer:
    return Request(prompt("hi", "x"), sample).answered(text, "stop", 1, model)


def filled(path: Path, *answers: Answer) -> Path:
    with AnswerFile(path) as file:
        for one in answers:
            file.append(one)
    return path


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    odd = [answer(0, ""), answer(1, 'a\nb\u2028c\r\n\t"é…'), answer(2, "half \ud83d of a pair")]
    path = filled(tmp_path / "deep" / "answers.jsonl", *odd)
    assert AnswerFile(path).read() == odd
    assert read_answers(path) == odd
    assert "é…" in path.read_text(encoding="utf-8")


def test_each_answer_is_on_disk_at_once(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a.jsonl")
    for sample in range(3):
        file.append(answer(sample))
        assert len(read_answers(file.path)) == sample + 1
    file.close()


def test_a_file_that_does_not_exist_is_empty_and_stays_so(tmp_path: Path) -> None:
    assert AnswerFile(tmp_path / "a.jsonl").read() == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b.jsonl").touch()
    assert AnswerFile(tmp_path / "b.jsonl").read() == []


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_half_written_last_line_is_taken_off(kept: int, cut: int, tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl", *map(answer, range(kept + 1)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with AnswerFile(path) as file:
        assert file.read() == [answer(sample) for sample in range(kept)]
        assert file.dropped == 1
        assert len(path.read_bytes().splitlines()) == kept
        file.append(answer(kept))
    assert path.read_bytes() == whole


def test_appending_without_reading_takes_a_half_line_off_too(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl", answer(0), answer(1))
    path.write_bytes(path.read_bytes()[:-5])
    filled(path, answer(2))
    assert AnswerFile(path).read() == [answer(0), answer(2)]


def test_damage_elsewhere_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl", answer(0), answer(1))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0][:20] + b"\n" + lines[1])
    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON"):
        AnswerFile(path).read()


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with AnswerFile(path) as first:
        first.append(answer(0))
        with pytest.raises(RunError, match="another process writes"):
            AnswerFile(path).append(answer(1))
        assert AnswerFile(path).read() == [answer(0)], "reading is free"
    filled(path, answer(1))
    assert len(AnswerFile(path).read()) == 2


def test_a_full_disk_loses_no_whole_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AnswerFile(tmp_path / "a.jsonl")
    file.append(answer(0))
    stream = file.lock()

    class Full:
        def __init__(self) -> None:
            self.room = 30

        def write(self, line: bytes) -> int:
            if self.room == 0:
                raise OSError(28, "No space left on device")
            taken = stream.write(line[: self.room])
            self.room -= taken
            return taken

        def close(self) -> None:
            stream.close()

    monkeypatch.setattr(file, "_stream", Full())
    with pytest.raises(RunError, match="No space left on device.*same command again"):
        file.append(answer(1))
    file.append(answer(2))
    assert file.read() == [answer(0), answer(2)] and file.dropped == 1
    file.close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        AnswerFile(tmp_path / "file" / "a.jsonl").append(answer())


def test_missing_is_what_this_model_has_not_answered(tmp_path: Path) -> None:
    file = AnswerFile(filled(tmp_path / "a.jsonl", answer(1), answer(0, model="other")))
    requests = requests_for([prompt("hi", "x"), prompt("ho", "y")], 2)
    assert [r.key[1:] for r in file.missing(requests, "m")] == [("x", 0), ("y", 0), ("y", 1)]
    assert len(file.missing(requests, "nobody")) == 4


def test_another_wording_and_two_answers_to_one_request_are_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl", answer(0))
    with pytest.raises(RunError, match=r"another wording of open/x, sample 0"):
        AnswerFile(path).missing(requests_for([prompt("hello", "x")], 1), "m")
    filled(path, answer(0, "no"))
    with pytest.raises(RunError, match="two answers of m to open/x, sample 0"):
        AnswerFile(path).stored("m")


def test_settings_are_recorded_and_compared(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "answers.jsonl") as file:
        file.claim("m", {"seed": 0, "stop": ()})
        file.claim("other", {"seed": 1})
    assert json.loads((tmp_path / "answers.settings.json").read_text()) == {
        "m": {"seed": 0, "stop": []},
        "other": {"seed": 1},
    }
    again = AnswerFile(tmp_path / "answers.jsonl")
    again.claim("m", {"stop": (), "seed": 0})
    with pytest.raises(RunError, match=r"of m that were made otherwise: adapter: None → 'x'; seed: 0 → 2"):
        again.claim("m", {"seed": 2, "stop": (), "adapter": "x"})


def test_answers_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl", answer(0))
    with pytest.raises(RunError, match="does not say how they were made"):
        AnswerFile(path).claim("m", {"seed": 0})
    with AnswerFile(path) as file:
        file.claim("new", {"seed": 0})


@pytest.mark.parametrize("text", ["{", "[]", '{"m": 3}'])
def test_a_damaged_record_of_settings_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.settings.json").write_text(text)
    with pytest.raises(RunError, match=r"a\.settings\.json"):
        AnswerFile(tmp_path / "a.jsonl").claim("m", {})


def test_answers_are_resumed_and_equal_to_those_of_one_go(tmp_path: Path) -> None:
    backbone, requests = tiny_backbone(), asked(2)
    whole = answers_for(tmp_path / "whole.jsonl", backbone, requests, SIX, "m")
    assert [(a.prompt, a.sample) for a in whole] == [r.key[1:] for r in requests]

    def stop(done: Answer) -> None:
        made.append(done)
        if len(made) == 4:
            raise KeyboardInterrupt

    made: list[Answer] = []
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answers_for(path, backbone, requests, SIX, "m", batch_size=3, done=stop)
    assert len(read_answers(path)) == 4
    path.write_bytes(path.read_bytes()[:-3])  # and the last one was only half written
    new: list[Answer] = []
    found = answers_for(path, backbone, requests, SIX, "m", done=new.append)
    assert found == whole and len(new) == 7
    assert sorted(a.key for a in read_answers(path)) == sorted(a.key for a in whole)
    new.clear()
    assert answers_for(path, backbone, requests, SIX, "m", done=new.append) == whole and new == []
    more = answers_for(path, backbone, asked(3), SIX, "m", done=new.append)
    assert len(new) == 5 and [a for a in more if a.sample < 2] == whole


@pytest.mark.parametrize(
    "change", [{"sampling": Sampling(max_tokens=7)}, {"about": {"adapter": "b"}}, {"layers": 2}]
)
def test_answers_of_other_settings_are_never_mixed(change: dict[str, Any], tmp_path: Path) -> None:
    path, first = tmp_path / "a.jsonl", asked(1)[:1]
    answers_for(path, tiny_backbone(), first, SIX, "m", about={"adapter": "a"})
    before = path.read_bytes()
    backbone = tiny_backbone(layers=change.get("layers", 3))
    about = change.get("about", {"adapter": "a"})
    with pytest.raises(
        RunError, match="made otherwise: (max_tokens: 6 → 7|adapter: 'a' → 'b'|fingerprint: )"
    ):
        answers_for(path, backbone, asked(1), change.get("sampling", SIX), "m", about=about)
    assert path.read_bytes() == before
    other = answers_for(path, backbone, first, change.get("sampling", SIX), "n", about=about)
    assert other[0].model == "n" and len(read_answers(path)) == 2


def test_requests_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="asked for twice"):
        answers_for(tmp_path / "a.jsonl", tiny_backbone(), [*asked(1), asked(1)[0]], SIX, "m")
    assert list(tmp_path.iterdir()) == []


def killed_after(path: Path, count: int) -> int:
    """The status of a process that kills itself (-9) after so many answers."""
    made: list[Answer] = []

    def done(one: Answer) -> None:
        made.append(one)
        if len(made) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            answers_for(path, tiny_backbone(), asked(2), SIX, "m", 2, done=done)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def test_kill_9_loses_nothing_that_was_done_and_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert os.WTERMSIG(killed_after(path, 3)) == signal.SIGKILL
    kept = read_answers(path)
    assert len(kept) == 3
    found = answers_for(path, tiny_backbone(), asked(2), SIX, "m")
    assert found == answers_for(tmp_path / "b.jsonl", tiny_backbone(), asked(2), SIX, "m")
    assert read_answers(path)[:3] == kept
