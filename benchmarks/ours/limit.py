"""How much of the machine's matmul limit an SFT step reaches, and where the rest of the time goes."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import rate
from benchmarks.ours.arithmetic import Shape, step_flops
from benchmarks.ours.setting import build_config
from benchmarks.ours.training import _record, fitted
from benchmarks.settings import Settings
from em.backbone import Backbone
from em.config import Config

ROWS, SHOWN = 2048, 14


def measure_limit(
    settings: Settings, work: Path, plan: dict[str, Any], config: Config, backbone: Backbone
) -> dict[str, Any]:
    """Share = arithmetic of all steps / (their time × rate of the model's own products at 2 048 rows)."""
    shape, dtype = Shape.of(backbone), getattr(torch, settings.dtype)
    rates = [_rate(shape, dtype, settings.device)]
    timed, experiment = fitted(settings, config, backbone)
    rates.append(_rate(shape, dtype, settings.device))
    experiment.detach()
    found = _record(timed, experiment, plan)
    counted: dict[str, float] = {}
    for step in plan["steps"]:
        rows = [plan["sft"][index] for index in step["sft"]]
        targets = sum(sum(row["answer"][1:]) for row in rows)
        part = step_flops(shape, settings.sizes["rank"], [len(row["ids"]) for row in rows], targets)
        counted = {name: counted.get(name, 0.0) + flops for name, flops in part.items()}
    best, total = max(rates), sum(counted.values())
    found |= {
        "share": total / found["seconds"] / (best * 1e9),
        "gflop": {name: round(flops / 1e9, 1) for name, flops in counted.items()},
        "gflops": total / found["seconds"] / 1e9,
        "rates": {settings.dtype: [round(one, 1) for one in rates]},
    }
    if settings.bf16 and settings.dtype != "bfloat16":
        found["rates"]["bfloat16"] = [round(_rate(shape, torch.bfloat16, settings.device), 1)]
    found["profile"] = _profile(settings, work, plan, backbone)
    return found


def _rate(shape: Shape, dtype: torch.dtype, device: str) -> float:
    return rate(dtype, shape.products, ROWS, device)


def _profile(
    settings: Settings, work: Path, plan: dict[str, Any], backbone: Backbone
) -> list[dict[str, Any]]:
    """Operators by their own time in one more step."""
    first = Settings(**{**vars(settings), "sizes": {**settings.sizes, "steps": 1, "epochs": 1}})
    config = build_config(first, work, plan["model"], name="profile")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if settings.device.startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        _, experiment = fitted(first, config, backbone)
    experiment.detach()
    key = "self_device_time_total" if settings.device.startswith("cuda") else "self_cpu_time_total"
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1
    return [
        {
            "operator": event.key,
            "ms": round(getattr(event, key) / 1e3, 1),
            "share": round(getattr(event, key) / total, 4),
            "calls": event.count,
        }
        for event in events[:SHOWN]
    ]
