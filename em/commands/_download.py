"""Download one file with progress; what was cut off is never taken for whole."""

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from em.errors import DataError
from em.progress import Task

SECONDS = 30.0  # without a byte
CHUNK = 1 << 16
LIMIT = 1024**3  # bytes
BY_HAND = "run the same command again, or download the file by hand and give it with --archive FILE"


def is_url(text: str) -> bool:
    """Whether a text names something to download."""
    return "://" in text


def without_secrets(url: str) -> str:
    """An address without what may be a password or token in it: user, query and fragment."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def download(url: str, target: Path) -> None:
    """Fetch `url` into the file `target`.

    Raises:
        DataError: no http(s) address; the server does not give it, or ends too early; the disk is full.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"{url}: is no http or https address; give one, or a local file")
    with _opened(url) as response:
        length = response.headers.get("Content-Length") or ""
        expected = int(length) if length.isascii() and length.isdigit() else None
        if (expected or 0) > LIMIT:
            raise DataError(f"{url}: has {expected} bytes, more than {LIMIT}; this is not the archive")
        received = 0
        with target.open("wb") as stream, Task("download, KiB", (expected or 0) // 1024) as task:
            for chunk in _chunks(url, response):
                received += len(chunk)
                if received > LIMIT:
                    raise DataError(f"{url}: gives more than {LIMIT} bytes; this is not the archive")
                _keep(stream, chunk, target)
                task.advance(received // 1024 - task.done)
    if expected is not None and received != expected:
        raise DataError(f"{url}: the connection ended after {received} of {expected} bytes; {BY_HAND}")


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    request = urllib.request.Request(url, headers={"User-Agent": "em", "Accept-Encoding": "identity"})
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url}: the server answers {error.code} {error.reason}; {BY_HAND}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{url}: cannot be reached ({reason}); {BY_HAND}") from error
    with response:
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise DataError(f"{url}: leads to {response.url}, which is not encrypted; {BY_HAND}")
        yield response


def _chunks(url: str, response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{url}: the connection ended early ({error}); {BY_HAND}") from error
        if not chunk:
            return
        yield chunk


def _keep(stream: Any, chunk: bytes, target: Path) -> None:
    try:
        stream.write(chunk)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror}); free some space") from error
