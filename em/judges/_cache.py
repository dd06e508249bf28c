"""Replies of judges on disk: no call that was answered is ever paid for twice."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from em.errors import JudgeError
from em.judges._reply import Reply, Usage

APPLICATION = 0x656D6A63  # marks a file as a judge cache
VERSION = 1
BUSY_SECONDS = 20.0
BATCH = 500  # keys of one query
TABLE = (
    "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, text TEXT NOT NULL, top TEXT NOT NULL, "
    "finish TEXT NOT NULL, prompt_tokens INTEGER, reply_tokens INTEGER, at REAL NOT NULL) WITHOUT ROWID"
)
Result = TypeVar("Result")


def key_of(parts: dict[str, Any]) -> bytes:
    """SHA-256 of canonical JSON: equal calls have equal keys on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).digest()


class ReplyCache:
    """A SQLite file that several processes may use at once; for one thread of one event loop.

    It holds what is needed to score again: text, the first token's log-probabilities, why the reply ended,
    its tokens and the time; no prompt, no header, no key.

    Raises:
        JudgeError: the file is damaged, is something else or cannot be written; it is left as it is.
    """

    def __init__(self, path: Path):
        self.path = path
        self._connection = self._guarded(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(sqlite3.Error):  # every reply is committed already
            self._connection.close()

    def get(self, key: bytes, newer_than: float = 0.0) -> Reply | None:
        """The reply to a call; None if it was never answered, or not since a time in seconds since 1970."""

        def fetch() -> Reply | None:
            row = self._connection.execute(
                "SELECT text, top, finish, prompt_tokens, reply_tokens FROM replies WHERE key = ? AND at > ?",
                (key, newer_than),
            ).fetchone()
            return None if row is None else _reply(*row)

        return self._guarded(fetch)

    def missing(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those keys that have no reply."""

        def find() -> set[bytes]:
            known: set[bytes] = set()
            for start in range(0, len(keys), BATCH):
                batch = keys[start : start + BATCH]
                marks = ",".join("?" * len(batch))
                query = f"SELECT key FROM replies WHERE key IN ({marks})"
                known.update(row[0] for row in self._connection.execute(query, batch))
            return set(keys) - known

        return self._guarded(find)

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep a reply. It is committed when this returns, so that a killed process has lost nothing."""
        usage = reply.usage
        row = (
            key,
            reply.text.encode("utf-8", "replace").decode(),
            json.dumps(reply.top),
            reply.finish,
            None if usage is None else usage.prompt,
            None if usage is None else usage.reply,
            time.time(),
        )
        self._guarded(
            lambda: self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?,?,?,?,?,?,?)", row)
        )

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        # One process sets the file up while others wait; each then sees a whole cache or none.
        connection.execute("BEGIN IMMEDIATE")
        application, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (application, version) != (APPLICATION, VERSION):
            if tables:
                raise sqlite3.DatabaseError("it is another program's database, or another version's cache")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(TABLE)
        connection.execute("COMMIT")
        _write_ahead(connection)
        # A killed process loses nothing under NORMAL; a power cut may lose the last replies, never the file.
        connection.execute("PRAGMA synchronous = NORMAL")

    def _guarded(self, work: Callable[[], Result]) -> Result:
        problem = ""
        try:
            return work()
        except sqlite3.OperationalError as error:
            problem = f"cannot be used ({error}); free some space, make it writable"
        except (sqlite3.Error, ValueError) as error:
            problem = f"is not a judge cache or is damaged ({error}); move it away"
        except OSError as error:
            problem = f"cannot be opened ({error.strerror or error}); make its folder writable"
        raise JudgeError(f"{self.path}: {problem}, or set cache: of the judge to another file")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait for other processes here, so that several at once must retry."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _reply(text: str, top: str, finish: str, prompt: int | None, reply: int | None) -> Reply:
    pairs = tuple((str(token), float(logprob)) for token, logprob in json.loads(top))
    usage = None if prompt is None or reply is None else Usage(prompt, reply)
    return Reply(text, finish, pairs, usage=usage)
