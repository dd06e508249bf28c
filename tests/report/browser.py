"""A headless browser driven over the DevTools pipe with the standard library alone."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any, Self

BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
# The browser reads commands on descriptor 3 and answers on 4; dup first, because ours may be 3 or 4.
LAUNCHER = (
    "import fcntl, os, sys\n"
    "ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]\n"
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4)\n"
    "os.execvp(sys.argv[3], sys.argv[3:])\n"
)
PATIENCE = 60.0
FACTS = (Path(__file__).parent / "facts.js").read_text(encoding="utf-8")


def binary() -> str | None:
    """Path of a browser, None where there is none."""
    return next(filter(None, map(shutil.which, BINARIES)), None)


@dataclass(frozen=True)
class Facts:
    """What a reader of a page would meet.

    Args:
        console: messages, exceptions and blocked content.
        requests: every URL that was asked for, the page first.
        scroll_width: CSS pixels that the document takes; above `inner_width` it scrolls sideways.
        names: accessible name of each image, with its description.
        repeated_ids: ids that occur more than once.
        headings: level of each, in order.
        clipped: texts inside an image that reach out of it.
        overlapping: pairs of texts inside one image that lie over each other.
        smallest_text: in CSS pixels, inside images.
        background, ink: colours of the page as computed.
    """

    console: list[str]
    requests: list[str]
    inner_width: int
    scroll_width: int
    names: list[str]
    repeated_ids: list[str]
    headings: list[int]
    clipped: list[str]
    overlapping: list[str]
    smallest_text: float | None
    background: str
    ink: str


class Browser:
    """One page of one browser process."""

    def __init__(self, process: "subprocess.Popen[bytes]", write_end: int, read_end: int):
        self.process = process
        self._write_end, self._read_end = write_end, read_end
        self._rest = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self]:
        """Start a browser with a fresh profile, and end it whatever happens."""
        name = binary()
        assert name is not None, "no browser"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            their_read, write_end = os.pipe()
            read_end, their_write = os.pipe()
            process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(their_read), str(their_write), name]
                + [*FLAGS, f"--user-data-dir={profile}", "about:blank"],
                pass_fds=(their_read, their_write),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            os.close(their_read)
            os.close(their_write)
            try:
                browser = cls(process, write_end, read_end)
                browser._attach()
                yield browser
            finally:
                _end(process)
                os.close(write_end)
                os.close(read_end)

    def _attach(self) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        """One command; its result. Events that arrive before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method: str) -> None:
        """Until an event of this name has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select([self._read_end], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser has been silent for {PATIENCE:g} s"
            part = os.read(self._read_end, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def show(self, path: Path, width: int, dark: bool, height: int = 900) -> None:
        """Load a file at a width in CSS pixels, in the light or dark scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.events.clear()
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open_details(self) -> None:
        """Open every part of the page that can be folded."""
        self.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")

    def facts(self) -> Facts:
        """What is there now."""
        measured = self.evaluate(FACTS)
        console = [
            json.dumps(event["params"])
            for event in self.events
            if event.get("method")
            in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        ]
        requests = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return Facts(console=console, requests=requests, **measured)

    def picture(self, to: Path, full: bool = True) -> None:
        """Save what is shown as a PNG, the whole page or the first screen."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        to.write_bytes(base64.b64decode(answer["data"]))

    def print_to(self, to: Path) -> None:
        """Save the page as it would be printed, as PDF."""
        to.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"]))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the browser and the processes it started, which share the group it was given."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    process.wait(10)


def look(path: Path, width: int, dark: bool) -> Facts:
    """Facts about an HTML file as shown at a width, light or dark."""
    with Browser.open() as browser:
        browser.show(path, width, dark)
        return browser.facts()


def screenshot(path: Path, width: int, dark: bool, to: Path) -> None:
    """Save the whole page as a PNG."""
    with Browser.open() as browser:
        browser.show(path, width, dark)
        height = int(browser.evaluate("document.documentElement.scrollHeight"))
        browser.show(path, width, dark, height)
        browser.picture(to)
