"""How the processes of a run end together: one speaks, the others leave, nobody is left behind."""

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from em.callbacks._board import Board, Ending
from em.callbacks._peers import Peer
from em.errors import EmError
from em.files import write_json
from em.progress import console
from em.runs import RunDirectory

GRACE = 10.0  # seconds for the others to hear why all end
logger = logging.getLogger("em")


class Group:
    """This process among those of a run.

    Args:
        run: the run directory.
        world_size: of the run.
    """

    def __init__(self, run: RunDirectory, world_size: int):
        self.run, self.world_size = run, world_size
        self.rank, self.step = 0, 0
        self.peers: list[Peer] = []
        self.board: Board | None = None  # until the processes have met
        self.children: list[subprocess.Popen[Any]] = []

    @property
    def others(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.rank != self.rank]

    def first(self, ending: Ending) -> Ending:
        """Why all end, which another process may have told before."""
        if self.board is None or (ending.rank == 0 and self.rank != 0 and self.peers[0].state() == "gone"):
            return ending
        try:
            return self.board.end(ending)
        except RuntimeError:
            return ending if ending.rank == 0 else Ending(0, "does not answer", "interrupted")

    def speak(self, ending: Ending) -> None:
        """Tell the user, the log and the manifest."""
        text = self._text(ending)
        if self.rank == 0:  # the only one that keeps a log
            logger.error(text)
        try:
            manifest = {**self.run.manifest(), "status": ending.status, "error": text}
            write_json(self.run.path / "manifest.json", manifest)
        except EmError as error:
            text += f"\n{error}"
        console.show_cursor(True)  # a live display hides it
        sys.stderr.write(f"\n{text}\n")

    def _text(self, ending: Ending) -> str:
        who = self.peers[ending.rank] if self.peers else f"process {ending.rank} of {self.world_size}"
        cause = f"after step {self.step} {who} {ending.what}" if self.step else f"{who} {ending.what}"
        return (
            f"{cause[0].upper()}{cause[1:]}. All others have ended with it; run the same command to go on "
            "from the last checkpoint."
        )

    def dismiss(self) -> None:
        """Wait until the others know; those of this machine that do not hear it are killed."""
        if self.board is not None:
            self.goodbye()
            until(self.all_left, GRACE)
            for peer in self.others:
                if not self.said_goodbye(peer):
                    peer.kill()
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()

    def follow(self, ending: Ending) -> NoReturn:
        """End after process 0 has spoken, or speak for it."""
        if self.board is not None and ending.rank != 0:
            self.goodbye()
            main = self.peers[0]
            until(lambda: main.state() == "gone" or self.said_goodbye(main), GRACE)
        elif self.peers:
            self.peers[0].kill()  # it may hang, and hold the run's lock
        try:
            self._stand_in(ending)
        except (OSError, EmError):
            sys.stderr.write(f"\n{self._text(ending)}\n")
        leave()

    def _stand_in(self, ending: Ending) -> None:
        """Speak if process 0 did not: who gets the run's lock first, which a dead one cannot hold."""
        with (self.run.path / ".lock").open("a") as stream:
            if until(lambda: _locked(stream.fileno()), GRACE if ending.rank == 0 else 0.0):
                if self.run.manifest().get("status") in ("running", "trained"):
                    self.speak(ending)
            elif ending.rank == 0 and self.rank == 1:  # it hangs on another machine, and holds the run there
                sys.stderr.write(f"\n{self._text(ending)}\n")

    def goodbye(self) -> None:
        """This process knows that it ends."""
        assert self.board is not None
        try:
            self.board.leave(self.rank)
        except RuntimeError:
            return  # process 0 is gone, and nobody else asks

    def said_goodbye(self, peer: Peer) -> bool:
        assert self.board is not None
        if peer.rank == 0 and peer.state() == "gone":
            return False
        try:
            return self.board.left(peer.rank)
        except RuntimeError:
            return False

    def all_left(self) -> bool:
        return all(peer.state() == "gone" or self.said_goodbye(peer) for peer in self.others)


def until(done: Callable[[], bool], seconds: float) -> bool:
    """Wait for something; whether it came in time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def leave() -> NoReturn:
    """End this process whatever its main thread waits for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
