"""Devices: memory, and how fast they multiply matrices."""

import os
import time
from dataclasses import dataclass

import torch

from em.config.schema import Config
from em.errors import ConfigError

GB = 1e9
SECONDS = 0.5  # of the measurement on a CPU
SIZE = 768


@dataclass(frozen=True)
class Device:
    """One device.

    Args:
        memory: bytes.
        half, single: dense matrix products, operations per second in 16 and in 32 bits; 0 on a CPU, where
            they are measured.
        runtime: bytes of the process that are neither weights nor states. GPUs: context, kernels and
            workspaces, assumed. CPU: Python with torch, transformers and Lightning, measured.
        slack: what the allocator holds, over what is live (assumed for GPUs, measured on a CPU).
    """

    name: str
    memory: float
    half: float = 0.0
    single: float = 0.0
    runtime: float = 1.0 * GB
    slack: float = 1.1

    @property
    def cpu(self) -> bool:
        return self.name == "cpu"


# NVIDIA's data sheets: bf16 with 32-bit accumulation, without sparsity. Single precision is that of the
# plain units, because torch does not use TF32 unless it is told to.
GPUS = {
    device.name: device
    for device in (
        Device("A100-40GB", 40 * GB, 312e12, 19.5e12),
        Device("A100-80GB", 80 * GB, 312e12, 19.5e12),
        Device("H100-80GB", 80 * GB, 989e12, 67e12),
        Device("H200", 141 * GB, 989e12, 67e12),
        Device("L40S", 48 * GB, 362e12, 91.6e12),
        Device("RTX-4090", 24 * GB, 165e12, 82.6e12),
    )
}


def this_cpu() -> Device:
    """The machine that this runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", float(memory), runtime=0.54 * GB, slack=1.25)


def named(name: str) -> Device:
    """A device by name: `cpu`, or one of the table, in any case.

    Raises:
        ConfigError: it is not in the table.
    """
    if name.lower() == "cpu":
        return this_cpu()
    found = [device for known, device in GPUS.items() if known.lower() == name.lower()]
    if not found:
        raise ConfigError(f"--device: {name!r} is not known; use cpu, {', '.join(GPUS)}")
    return found[0]


def rate(device: Device, width: int) -> float:
    """Operations per second of matrix products.

    Args:
        width: bytes of a value.
    """
    if device.cpu:
        return measured_rate(torch.float32 if width == 4 else torch.bfloat16)
    return device.single if width == 4 else device.half


def measured_rate(dtype: torch.dtype, seconds: float = SECONDS) -> float:
    """Operations per second of a square matrix product here, in the fastest of the repetitions."""
    left = torch.ones(SIZE, SIZE, dtype=dtype)
    fastest, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        at = time.perf_counter()
        left @ left
        fastest = min(fastest, time.perf_counter() - at)
    return 2.0 * SIZE**3 / fastest


def default_device(config: Config) -> Device:
    """The device that a configuration runs on here.

    Raises:
        ConfigError: this machine's GPU is not in the table.
    """
    wanted = (config.trainer.accelerator, config.backbone.device.split(":")[0])
    if "cpu" in wanted or not torch.cuda.is_available():
        return this_cpu()
    name = torch.cuda.get_device_name()
    memory = torch.cuda.get_device_properties(0).total_memory
    like = [gpu for known, gpu in GPUS.items() if known.replace("RTX-", "").split("-")[0] in name]
    if not like:
        raise ConfigError(f"--device: this machine's {name} is not known; name one of {', '.join(GPUS)}")
    return min(like, key=lambda gpu: abs(gpu.memory - memory))
