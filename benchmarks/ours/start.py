"""From the command to the end of the first optimizer step, seen from outside the process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.settings import Settings

CONF = "conf/quickstart.yaml"
LIMIT = 12.0  # seconds; above it the imports are listed
PATIENCE = 300.0
SHOWN = 12


def run(settings: Settings, work: Path) -> dict[str, Any]:
    """Seconds from the start of `python train.py CONF` until its first step is in metrics.jsonl.

    Raises:
        BenchmarkError: the command ended or took too long without a step.
    """
    seconds, log = _first_step([sys.executable], work / f"start-{os.getpid()}")
    found: dict[str, Any] = {"seconds": seconds}
    if seconds > LIMIT:
        _, log = _first_step([sys.executable, "-X", "importtime"], work / f"imports-{os.getpid()}")
        found["imports"] = slowest_imports(log)
    return found


def _first_step(python: list[str], folder: Path) -> tuple[float, str]:
    folder.mkdir()
    log, began = folder / "log", time.time()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [*python, "train.py", CONF, f"runs_dir={folder}"],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        while True:
            rows = [row for path in folder.rglob("metrics.jsonl") for row in _rows(path)]
            times = [row["time"] for row in rows if "train/loss" in row]
            if times:
                return min(times) - began, log.read_text(encoding="utf-8")
            if process.poll() is not None or time.time() - began > PATIENCE:
                tail = log.read_text(encoding="utf-8")[-2000:]
                raise BenchmarkError(f"train.py {CONF} made no step (exit status {process.poll()}):\n{tail}")
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def slowest_imports(log: str) -> list[tuple[str, float]]:
    """Packages at the top of `-X importtime` by their seconds, what they import included."""
    found: dict[str, float] = {}
    for line in log.splitlines():
        match = re.match(r"import time:\s*\d+ \|\s*(\d+) \| ( *)(\S+)$", line)
        if match and "." not in match[3]:
            found[match[3]] = max(found.get(match[3], 0.0), int(match[1]) / 1e6)
    return sorted(found.items(), key=lambda item: -item[1])[:SHOWN]
