"""A process of several that dies or fails ends the others, with one message and a run to go on with."""

import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed import DistError

from em.callbacks._board import Board, Ending
from em.callbacks._ending import GRACE, Group, leave, until
from em.callbacks._peers import this_process
from em.errors import EmError, Interrupted
from em.runs import RunDirectory

BEAT = 1.0  # seconds between looks at the others
SILENT = 30.0  # seconds without a sign of life after which a process is dead
SILENT_VARIABLE = "EM_SILENT_SECONDS"  # another number of them
LONGEST = 6.0  # seconds that one look counts at most, however long it took
LAUNCHER = "EM_LAUNCHER_PID"
ASKED = (Interrupted, KeyboardInterrupt, SystemExit)  # a wish of the user, no failure


class Watch(pl.Callback):
    """A thread in each process that looks at the others; nothing at all with one process.

    Process 0 hears all others, and they hear it. Processes of one machine see at once when one of them is
    gone, and vouch for each other, so that a long call which keeps a thread from running is not taken for
    death. Silence is counted look by look: a machine that was suspended kills nothing.

    A process that dies or fails ends all others. Why is told on stderr and in the manifest, by process 0 or,
    if it is the dead one, by a survivor; every process exits with a status other than 0.

    Args:
        run: the run directory.
        world_size: of the run.
    """

    def __init__(self, run: RunDirectory, world_size: int):
        self.silent_limit = float(os.environ.get(SILENT_VARIABLE) or SILENT)
        self._group = Group(run, world_size)
        self._trainer: pl.Trainer | None = None
        self._launcher = 0  # of this process, where Lightning started it
        self._heard: dict[int, int] = {}
        self._silent: dict[int, float] = {}
        self._done, self._failed = threading.Event(), threading.Event()
        self._one = threading.Lock()  # a process ends once, by its main thread or by this one
        self._taking = threading.Lock()
        self._leaving = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the others for the length of a `with` block, which trains."""
        if self._group.world_size == 1:
            yield
            return
        if os.environ.get("LOCAL_RANK", "0") != "0":
            self._launcher = int(os.environ.get(LAUNCHER, "0"))
        else:
            os.environ[LAUNCHER] = str(os.getpid())
        threading.Thread(target=self._loop, daemon=True, name="em-watch").start()
        try:
            yield
            self._leave()
        except ASKED:
            self._stop()
            raise
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._done.set()
            os.environ.pop(LAUNCHER, None)

    def joins(self, trainer: pl.Trainer) -> None:
        """Become a callback of the Trainer that is about to run."""
        if self._group.world_size > 1:
            self._trainer = trainer
            trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._take_children()
        group = self._group
        group.rank, group.world_size = trainer.global_rank, trainer.world_size
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        board = Board(host) if group.rank == 0 else None
        mine = (this_process(group.rank, group.world_size), None if board is None else board.port)
        gathered: list[Any] = [None] * group.world_size
        torch.distributed.all_gather_object(gathered, mine)
        group.peers = [peer for peer, _ in gathered]
        group.board = board or Board(host, gathered[0][1])

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, ASKED):
            self._failed.set()
        else:
            self._fail(exception)

    def _take_children(self) -> None:
        """Lightning's own observer would kill this process with -9 and without a word; leave it nothing."""
        with self._taking:
            launcher = getattr(getattr(self._trainer, "strategy", None), "launcher", None)
            procs = getattr(launcher, "procs", [])
            if not procs or len(procs) + 1 < getattr(launcher, "num_processes", 0):
                return
            self._group.children = list(procs)
            launcher.procs = list(procs)  # type: ignore[union-attr]
            procs.clear()

    def _loop(self) -> None:
        before = time.monotonic()
        while not self._done.wait(BEAT):
            now = time.monotonic()
            if self._trainer is not None:
                self._group.step = self._trainer.global_step
            if self._group.board is None:
                self._look_at_launch()
            else:
                self._look(self._group.board, min(now - before, LONGEST))
            before = now

    def _look_at_launch(self) -> None:
        """Before the processes have met: those that Lightning started, and who started this one."""
        if self._launcher:
            if os.getppid() != self._launcher:
                self._end(Ending(0, "has died", "interrupted"))
            return
        self._take_children()
        for rank, child in enumerate(self._group.children, 1):
            if child.poll() is not None:
                self._end(Ending(rank, f"ended with status {child.returncode} before training", "failed"))

    def _look(self, board: Board, seconds: float) -> None:
        for peer in self._group.others:
            if peer.state() == "gone" and not self._group.said_goodbye(peer):
                self._lost(Ending(peer.rank, "has died (killed, or out of memory)", "interrupted"))
        try:
            ending = board.ending()
            if ending is not None:
                self._hear(ending)
                return
            self._beat(board)
            self._listen(board, seconds)
        except RuntimeError:
            self._count_silence(0, seconds)

    def _beat(self, board: Board) -> None:
        board.beat(self._group.rank)
        for peer in self._group.others:
            if peer.state() == "lives":
                board.beat(peer.rank)

    def _listen(self, board: Board, seconds: float) -> None:
        for peer in self._group.others if self._group.rank == 0 else self._group.peers[:1]:
            beats = board.beats(peer.rank)
            if beats != self._heard.get(peer.rank) or board.left(peer.rank):
                self._heard[peer.rank], self._silent[peer.rank] = beats, 0.0
            else:
                self._count_silence(peer.rank, seconds)

    def _count_silence(self, rank: int, seconds: float) -> None:
        self._silent[rank] = self._silent.get(rank, 0.0) + seconds
        if self._silent[rank] >= self.silent_limit:
            what = f"has given no sign of life for {self.silent_limit:g} seconds"
            self._lost(Ending(rank, what, "interrupted"))

    def _lost(self, ending: Ending) -> None:
        # Where the main thread leaves, what it had to do with the others is done.
        if not self._leaving and not self._failed.is_set():
            self._end(ending)

    def _hear(self, ending: Ending) -> None:
        """Another process failed; if the main thread fails with it, that one shows its own error."""
        if not self._leaving and not self._failed.wait(BEAT):
            self._end(ending)

    def _end(self, ending: Ending) -> None:
        with self._one:
            ending = self._group.first(ending)
            if self._group.rank == 0 and not self._launcher:
                self._group.speak(ending)
                self._group.dismiss()
                leave()
            self._group.follow(ending)

    def _leave(self) -> None:
        """The work is done. Process 0 waits for the others, who read what it holds."""
        self._leaving = True
        group = self._group
        if group.board is None:
            return
        with self._one:
            group.goodbye()
            if group.rank == 0:
                until(group.all_left, self.silent_limit)
                ending = group.board.ending()
                if ending is not None and ending.status == "failed":
                    group.speak(ending)
                    leave()

    def _stop(self) -> None:
        """The user wants it. All processes were asked together; one that was not hears it here."""
        self._failed.set()
        with self._one:
            self._group.first(Ending(self._group.rank, "was asked to stop", "interrupted"))
            if self._group.rank == 0 and not self._launcher:
                self._group.dismiss()
            elif self._group.board is not None:
                self._group.goodbye()

    def _fail(self, error: BaseException) -> None:
        """Tell the others. Returns where the error is to be shown: in process 0, or before all have met."""
        group = self._group
        if self._failed.is_set():
            return
        if _lost_contact(error):  # another one is the cause; the thread finds out which, and ends this one
            self._done.wait(self.silent_limit + LONGEST + GRACE if group.board else 3 * BEAT)
        self._failed.set()
        with self._one:
            if self._launcher and group.board is None:
                return
            mine = Ending(group.rank, f"failed: {type(error).__name__}: {error}", "failed")
            told = group.first(mine)
            if group.rank == 0:
                if told.what != mine.what:
                    group.speak(told)
                group.dismiss()
                return
            if told == mine and not isinstance(error, EmError):
                traceback.print_exception(error)
            group.follow(told)


def _lost_contact(error: BaseException) -> bool:
    """Whether an operation over all processes failed, as it does when another one is gone."""
    if not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "NCCL", "closed by peer")
    return isinstance(error, DistError) or any(word in str(error) for word in words)
