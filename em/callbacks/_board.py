"""What the processes of a run tell each other while they may be stuck: signs of life, and how it ended."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch.distributed as dist

PATIENCE = timedelta(seconds=5)  # for one request
T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """Why all processes end.

    Args:
        rank: of the process that is the cause.
        what: it did, for example `failed: DataError: …`.
        status: of the run.
    """

    rank: int
    what: str
    status: Literal["interrupted", "failed"]


class Board:
    """A key-value store in process 0, beside the process group, which may hang.

    Every method raises a RuntimeError where process 0 does not answer.

    Args:
        host: of process 0.
        port: None in process 0 itself, which opens a free one.
    """

    def __init__(self, host: str, port: int | None = None):
        self._host, self._lock = host, threading.Lock()
        self._store: dist.TCPStore | None = _store(host, port)
        self.serves, self.port = port is None, self._store.port

    def beat(self, rank: int) -> None:
        """A sign of life of a process, given by itself or by one that sees it live."""
        self._ask(lambda store: store.add(f"beat/{rank}", 1))

    def beats(self, rank: int) -> int:
        return self._ask(lambda store: store.add(f"beat/{rank}", 0))

    def leave(self, rank: int) -> None:
        """The process ends, and knows why."""
        self._ask(lambda store: store.add(f"left/{rank}", 1))  # `set` would not wait until it is there

    def left(self, rank: int) -> bool:
        return self._ask(lambda store: store.check([f"left/{rank}"]))

    def end(self, ending: Ending) -> Ending:
        """Tell why all must end.

        Returns:
            the first that was told, by whichever process.
        """
        told = self._ask(lambda store: store.compare_set("end", "", json.dumps(asdict(ending))))
        return Ending(**json.loads(told))

    def ending(self) -> Ending | None:
        """Why all must end; None while they need not."""
        if not self._ask(lambda store: store.check(["end"])):
            return None
        return Ending(**json.loads(self._ask(lambda store: store.get("end"))))

    def _ask(self, request: Callable[[dist.TCPStore], T]) -> T:
        with self._lock:
            if self._store is None:
                self._store = _store(self._host, self.port)
            try:
                return request(self._store)
            except RuntimeError:
                if not self.serves:  # after a request without an answer only a new connection is of use
                    self._store = None
                raise


def _store(host: str, port: int | None) -> dist.TCPStore:
    return dist.TCPStore(host, port or 0, None, port is None, PATIENCE, wait_for_workers=False)
