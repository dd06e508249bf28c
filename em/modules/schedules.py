"""Factors over training steps: the learning rate's and the KL weight's."""

import math

from em.config.schema import KLScheduleConfig, OptimizerConfig


def kl_factor(schedule: KLScheduleConfig, step: int, steps: int) -> float:
    """What kl.weight is multiplied by at a 0-based optimizer step.

    `off_at` is the paper's drift experiment: the KL term is removed in mid-training.
    """
    if schedule.kind == "off_at":
        return 1.0 if step < (schedule.step or 0) else 0.0
    if schedule.kind == "linear":
        done = step / max(1, steps - 1)
        return schedule.start + (schedule.end - schedule.start) * done
    return 1.0


def lr_factor(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """What optimizer.lr is multiplied by at a 0-based optimizer step; warm-up, then decay to 0."""
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return 1.0
    left = max(1, steps - optimizer.warmup_steps)
    done = min(1.0, (step - optimizer.warmup_steps) / left)
    return 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
