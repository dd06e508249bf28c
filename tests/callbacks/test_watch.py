"""Who lives, who is silent, who speaks: the parts of ending together, in one process."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import DistBackendError

from em.callbacks import _ending, _peers, _watch
from em.callbacks._board import Board, Ending
from em.callbacks._ending import Group, until
from em.callbacks._peers import Peer, this_process
from em.callbacks._watch import Watch
from em.files import write_json
from em.runs import RunDirectory

DIED = Ending(0, "has died", "interrupted")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def peer_of(process: subprocess.Popen[bytes], rank: int = 1) -> Peer:
    status = _peers._status(process.pid)
    assert status is not None
    return replace(this_process(rank, 2), pid=process.pid, born=status[1])


def test_a_process_of_this_machine_is_seen_to_live_stop_and_die(sleeper: subprocess.Popen[bytes]) -> None:
    peer = peer_of(sleeper)
    assert until(lambda: peer.state() == "lives", 5)
    sleeper.send_signal(19)
    assert until(lambda: peer.state() == "stopped", 5)
    peer.kill()
    assert until(lambda: peer.state() == "gone", 5)  # a zombie: nobody has waited for it
    peer.kill()
    sleeper.wait()
    assert peer.state() == "gone"


def test_another_process_with_its_id_and_one_elsewhere(sleeper: subprocess.Popen[bytes]) -> None:
    peer = peer_of(sleeper)
    assert replace(peer, born="1").state() == "gone"
    elsewhere = replace(peer, place="another boot")
    assert elsewhere.state() == "unknown" and replace(peer, place="").state() == "unknown"
    elsewhere.kill()
    assert sleeper.poll() is None


def test_what_processes_tell_each_other() -> None:
    server = Board("127.0.0.1")
    other = Board("127.0.0.1", server.port)
    server.beat(1)
    other.beat(1)
    assert (server.beats(1), other.beats(0)) == (2, 0)
    assert other.ending() is None and not server.left(1)
    first = Ending(1, "failed: ü", "failed")
    assert other.end(first) == server.end(DIED) == server.ending() == first
    other.leave(1)
    assert server.left(1) and not server.left(0)


def group_of(folder: Path, rank: int) -> Group:
    group = Group(RunDirectory(folder), 2)
    group.rank, group.step = rank, 3
    return group


def test_a_survivor_speaks_once_for_the_dead(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "manifest.json", {"status": "running", "steps": 9})
    for _ in range(2):
        group_of(tmp_path, 1)._stand_in(DIED)
    said = capfd.readouterr().err
    assert (
        said.count("After step 3 process 0 of 2 has died. All others have ended with it; run the same") == 1
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {"status": "interrupted", "steps": 9, "error": said.strip()}


def test_who_holds_the_run_is_not_spoken_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ending, "GRACE", 0.2)
    run = RunDirectory(tmp_path)
    write_json(tmp_path / "manifest.json", {"status": "running"})
    with run.locked():
        group_of(tmp_path, 1)._stand_in(replace(DIED, rank=1))
        group_of(tmp_path, 2)._stand_in(DIED)
        assert capfd.readouterr().err == ""
        group_of(tmp_path, 1)._stand_in(DIED)
    assert "process 0 of 2 has died" in capfd.readouterr().err
    assert run.manifest() == {"status": "running"}


def test_silence_is_counted_in_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(RunDirectory(tmp_path), 2)
    ended: list[Ending] = []
    monkeypatch.setattr(watch, "_end", ended.append)
    group, board = watch._group, Board("127.0.0.1")
    elsewhere = replace(this_process(1, 2), place="another boot")
    group.peers, group.board = [this_process(0, 2), elsewhere], board
    for _ in range(9):
        watch._look(board, 6.0)
        board.beat(1)
    assert ended == []
    for _ in range(6):  # the first look still hears the last beat
        watch._look(board, 6.0)
    assert [ending.what for ending in ended] == ["has given no sign of life for 30 seconds"]
    board.leave(1)
    watch._look(board, 60.0)
    assert len(ended) == 1


def test_processes_of_one_machine_vouch_for_each_other(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    watch, board = Watch(RunDirectory(tmp_path), 3), Board("127.0.0.1")
    elsewhere = replace(this_process(2, 3), place="another boot")
    watch._group.peers, watch._group.board = [this_process(0, 3), peer_of(sleeper), elsewhere], board
    watch._look(board, 1.0)
    assert [board.beats(rank) for rank in range(3)] == [1, 1, 0]


def test_nothing_is_started_with_one_process(tmp_path: Path) -> None:
    before = threading.active_count()
    with Watch(RunDirectory(tmp_path), 1).watching():
        assert threading.active_count() == before


def test_what_looks_like_another_process_is_gone() -> None:
    gloo = RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    )
    assert _watch._lost_contact(gloo) and _watch._lost_contact(DistBackendError("NCCL error"))
    assert not _watch._lost_contact(RuntimeError("size mismatch"))
    assert not _watch._lost_contact(ValueError("gloo"))


def test_until_ends() -> None:
    began = time.monotonic()
    assert not until(lambda: False, 0.2) and time.monotonic() - began < 2
