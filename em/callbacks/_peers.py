"""The processes of a run: who they are, and whether one of this machine still lives."""

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["lives", "stopped", "gone", "unknown"]


@dataclass(frozen=True)
class Peer:
    """One process of a run.

    Args:
        rank: among `world_size`.
        host: name of its machine.
        place: equal for processes that see each other's ids; empty where that cannot be known.
        pid: its id there.
        born: when it was started, because ids are used again.
    """

    rank: int
    world_size: int
    host: str
    place: str
    pid: int
    born: str

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size} ({self.host}, pid {self.pid})"

    def state(self) -> State:
        """What the machine says of it; `unknown` from another machine."""
        if not self.place or self.place != _place():
            return "unknown"
        found = _status(self.pid)
        if found is None or found[1] != self.born or found[0] in "ZXx":
            return "gone"
        return "stopped" if found[0] in "Tt" else "lives"

    def kill(self) -> None:
        """End it at once, if it is on this machine."""
        if self.state() in ("lives", "stopped"):
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return  # it has just ended


def this_process(rank: int, world_size: int) -> Peer:
    """The calling process."""
    status = _status(os.getpid())
    born, place = ("", "") if status is None else (status[1], _place())
    return Peer(rank, world_size, socket.gethostname(), place, os.getpid(), born)


def _status(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process, from Linux; None: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return fields[0], fields[19]


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
