"""Progress with an estimate: a bar on a terminal, a line every few seconds elsewhere."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
SECONDS_BETWEEN_LINES = 15.0
Item = TypeVar("Item")


def is_main_process() -> bool:
    """Whether this process is the one that talks and writes (before and after Lightning knows)."""
    return all(int(os.environ.get(name, "0") or 0) == 0 for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


class _Bars:
    """All live bars in one display, because a terminal can hold only one."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._open = 0

    def add(self, what: str, total: int, done: int) -> TaskID:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                console=console,
            )
            self._progress.start()
        self._open += 1
        return self._progress.add_task(what, total=total or None, completed=done, status="")

    def update(self, bar: TaskID, done: int, status: str) -> None:
        if self._progress is not None:
            self._progress.update(bar, completed=done, status=status)

    def close(self, bar: TaskID) -> None:
        self._open -= 1
        if self._progress is None:
            return
        if self._open == 0:
            self._progress.stop()
            self._progress = None
        else:  # a bar for each measurement of a run would fill the screen
            self._progress.remove_task(bar)


_bars = _Bars()


class Task:
    """Shows how far a piece of work is and how long it will still take.

    Args:
        what: a few words; shown as plain text, never as markup.
        total: units of work; 0 where it is not known, and then there is no estimate.
        done: units that an earlier process did; they do not enter the estimate.
        shown: false for work too short to be spoken of.
    """

    def __init__(self, what: str, total: int, done: int = 0, shown: bool = True):
        self.what, self.total, self.done = what, total, done
        self.shown = shown and is_main_process()
        self._first, self._began, self._said = done, time.monotonic(), time.monotonic()
        self._bar: TaskID | None = None

    def __enter__(self) -> Self:
        self._began = self._said = time.monotonic()
        if self.shown and console.is_terminal:
            self._bar = _bars.add(self.what, self.total, self.done)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            _bars.close(self._bar)
            self._bar = None
        elif self.shown and error is None:
            console.print(f"{self.what}: done in {clock(time.monotonic() - self._began)}", markup=False)

    def advance(self, amount: int = 1, status: str = "") -> None:
        """Count work done; `status` is shown beside the estimate."""
        self.done += amount
        if not self.shown:
            return
        if self._bar is not None:
            _bars.update(self._bar, self.done, status)
            return
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            left = f"/{self.total}, {clock(self.remaining())} left" if self.total else ""
            console.print(f"{self.what}: {self.done}{left}  {status}", markup=False)

    def remaining(self) -> float:
        """Seconds left at the pace so far."""
        pace = (time.monotonic() - self._began) / max(1, self.done - self._first)
        return pace * max(0, self.total - self.done)


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress display."""
    known = len(items) if total is None and isinstance(items, Sized) else total
    with Task(what, known or 0) as task:
        for item in items:
            yield item
            task.advance()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say(text: str) -> None:
    """One plain line for the user and the run's log, from the main process; nothing in it is markup."""
    if is_main_process():
        console.print(text, markup=False, emoji=False)
        logging.getLogger("em").info(text)
