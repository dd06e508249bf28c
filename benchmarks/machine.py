"""What the machine is and how fast it multiplies matrices."""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

Shape = tuple[int, int]
SQUARE = 2048
SLOW = 20.0  # GFLOP/s


def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, memory and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )


def rate(
    dtype: torch.dtype, shapes: Sequence[Shape], rows: int = SQUARE, device: str = "cpu", tries: int = 4
) -> float:
    """GFLOP/s of products of `rows` vectors with matrices of some shapes, the best try of each.

    Shapes that occur several times count as often: the result is the rate of all products together.
    """
    seconds = sum(_best(dtype, shape, rows, device, tries) * shapes.count(shape) for shape in set(shapes))
    flops = sum(2.0 * rows * a * b for a, b in shapes)
    return flops / seconds / 1e9


def _best(dtype: torch.dtype, shape: Shape, rows: int, device: str, tries: int) -> float:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, shape[0], generator=generator).to(device, dtype)
    right = torch.randn(shape, generator=generator).to(device, dtype)
    taken = []
    for _ in range(tries + 1):
        began = clock(device)
        torch.mm(left, right)
        taken.append(clock(device) - began)
    return min(taken[1:])


def rates(device: str = "cpu", size: int = SQUARE) -> dict[str, float]:
    """GFLOP/s of square products in fp32 and bf16.

    A processor without bf16 arithmetic can be a hundred times slower in it, so the size starts small there.
    """
    bf16 = rate(torch.bfloat16, [(128, 128)], rows=128, device=device)
    if bf16 > SLOW:
        bf16 = rate(torch.bfloat16, [(size, size)], rows=size, device=device)
    fp32 = rate(torch.float32, [(size, size)], rows=size, device=device)
    return {"fp32": round(fp32, 1), "bf16": round(bf16, 1)}


def clock(device: str = "cpu") -> float:
    """Seconds, after all that the device was told to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
