"""One side of one row, in a process of its own: python -m benchmarks.side FUNCTION WORK RESULT."""

import importlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_mb
from benchmarks.settings import Settings


def main(arguments: list[str]) -> int:
    target, work, result = arguments[0], Path(arguments[1]), Path(arguments[2])
    settings = Settings.read(work)
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(settings.threads)
    module, _, name = target.partition(":")
    found: dict[str, Any] = getattr(importlib.import_module(module), name)(settings, work) or {}
    found.setdefault("peak_mb", round(peak_mb(settings.device), 1))
    scratch = result.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(found), encoding="utf-8")
    scratch.rename(result)
    return 0


def machine(settings: Settings, work: Path) -> dict[str, Any]:
    """The machine and its matmul rate at this moment."""
    from benchmarks.machine import SQUARE, describe, rates

    size = 256 if settings.arch == "tiny" else SQUARE
    size = 8192 if settings.device.startswith("cuda") else size
    return {**describe(settings.device), "rates": rates(settings.device, size)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
