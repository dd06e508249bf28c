"""Peak memory of this process, or of its accelerator."""

import contextlib
import resource
from pathlib import Path

MEGABYTE = 2**20


def peak_mb(device: str = "cpu") -> float:
    """The most that this process has held so far, or since `restart_peak`, in MB."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / MEGABYTE
    value = _status("VmHWM")
    # Without /proc: what the kernel keeps for the process, which in Linux begins with its parent's.
    return value if value is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now_mb() -> float:
    """What this process holds now, in MB; 0 where the system does not say."""
    return _status("VmRSS") or 0.0


def restart_peak() -> bool:
    """Let the peak start again from what is held now; whether the kernel did it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def available_mb() -> float | None:
    """What the machine could still give, in MB; None where it does not say."""
    return _lines("/proc/meminfo", "MemAvailable")


def _status(key: str) -> float | None:
    return _lines("/proc/self/status", key)


def _lines(path: str, key: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    return None
