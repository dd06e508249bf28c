"""Run train.py as a user does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def write_config(folder: Path, raw: dict[str, Any], name: str = "conf.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def train(conf: Path, *overrides: str, timeout: int = 240, **env: str) -> subprocess.CompletedProcess[str]:
    """`python train.py CONF key=value …` from the project's root; both outputs captured."""
    command = [sys.executable, "train.py", str(conf), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
