"""Runs rows: every side in a process of its own, sides in turn, every result stored as it comes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.results import Result, read_result
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.sizes import sizes_of

ROOT = Path(__file__).parents[1]
PREPARING = 0.3  # of an alternation, for the estimate
Progress = Callable[[float, str], None]


class SideFailed(BenchmarkError):
    """A process of a side ended with an error; the message is its last line."""


def environment(settings: Settings) -> dict[str, str]:
    """Threads, and nothing that talks to a hub or the terminal."""
    threads = str(settings.threads)
    return {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        # Sides run in the repository's folder, wherever the command was given.
        **({"EM_DATA": os.path.abspath(os.environ["EM_DATA"])} if os.environ.get("EM_DATA") else {}),
    }


def run_process(target: str, settings: Settings, work: Path, log: Path) -> dict[str, Any]:
    """What `target(settings, work)` returns in a new process.

    Raises:
        SideFailed: it ended with an error; its output is in `log`.
    """
    result = Path(tempfile.mkdtemp(dir=work)) / "result.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "benchmarks.side", target, str(work), str(result)]
        status = subprocess.run(
            command, cwd=ROOT, env=environment(settings), stdout=stream, stderr=stream, check=False
        ).returncode
    if status or not result.is_file():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit status {status}"
        raise SideFailed(f"{reason} (exit status {status}; output in {log})")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def missing(row: Row) -> list[str]:
    """Packages of the peer that are not installed."""
    return [name for name in row.needs if importlib.util.find_spec(name) is None]


def units(row: Row, repeats: int, scale: str) -> float:
    """Work of a row, for the estimate of the remaining time."""
    return row.cost.get(scale, 60.0) * (repeats + (PREPARING if row.prepare else 0.0))


def run_row(
    row: Row, settings: Settings, repeats: int, out: Path, command: Sequence[str], progress: Progress
) -> Result:
    """Run a row and store what comes out; a side that fails ends the row, not the benchmark."""
    settings = Settings(
        **{**vars(settings), "row": row.name, "sizes": sizes_of(row.sizes, settings.scale, settings.arch)}
    )
    started = time.time()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{row.name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(started))}-{os.getpid()}.jsonl"
    logs = out / "logs" / path.stem
    work = Path(tempfile.mkdtemp(prefix="em-bench-"))
    try:
        settings.write(work)
        machine = run_process("benchmarks.side:machine", settings, work, logs / "machine.log")
        header = {"row": row.name, "settings": vars(settings), "machine": machine, "started": started}
        _append(path, {"kind": "header", **header, "command": list(command)})
        _run_sides(row, settings, repeats, path, work, logs, progress)
        after = run_process("benchmarks.side:machine", settings, work, logs / "machine.log")
        _append(path, {"kind": "after", "machine": after})
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_result(path)


def _run_sides(
    row: Row, settings: Settings, repeats: int, path: Path, work: Path, logs: Path, progress: Progress
) -> None:
    whole = units(row, 1, settings.scale) - units(row, 0, settings.scale)
    sides = dict(row.sides)
    lacking = missing(row)
    if lacking and "peer" in sides:
        del sides["peer"]
        reason = f"{', '.join(lacking)} is not installed; `make bench` sets up an environment that has it"
        _append(path, {"kind": "skipped", "side": "peer", "reason": reason})
    done, side, repeat = 0.0, "prepare", 0
    try:
        if row.prepare:
            run_process(row.prepare, settings, work, logs / "prepare.log")
            progress(PREPARING * whole, f"{row.name}: prepared")
            done += PREPARING * whole
        for repeat in range(repeats):
            for side, target in sides.items():
                found = run_process(target, settings, work, logs / f"{side}-{repeat}.log")
                _append(path, {"kind": "side", "side": side, "repeat": repeat, "result": found})
                progress(whole / len(sides), f"{row.name}: {side} {found['seconds']:.1f} s")
                done += whole / len(sides)
    except SideFailed as error:
        _append(path, {"kind": "side", "side": side, "repeat": repeat, "error": str(error)})
        progress(units(row, repeats, settings.scale) - done, f"{row.name}: {side} failed")


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
