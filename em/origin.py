"""What produced a run: versions, code state and hardware."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "wandb", "omegaconf", "numpy")


def origin() -> dict[str, Any]:
    """Versions, code state and hardware; no environment variables and no host name."""
    versions = {name: _version(name) for name in PACKAGES}
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    hardware = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
    }
    return {"python": platform.python_version(), "versions": versions, "git": _git(), "hardware": hardware}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    root = Path(__file__).parent.parent

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = ask("status", "--porcelain", "--untracked-files=no")
        difference = hashlib.sha256(ask("diff", "HEAD").encode()).hexdigest()[:16] if changes else None
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(changes), "diff_sha256": difference}
    except (OSError, subprocess.CalledProcessError):
        return None
