"""Optimizers by name."""

from typing import Any

import torch
from torch import nn

from em.config.schema import OptimizerConfig
from em.errors import ConfigError


def make_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW in 32 bits, or in 8 bits where bitsandbytes is installed.

    Raises:
        ConfigError: adamw_8bit without bitsandbytes.
    """
    options: dict[str, Any] = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "betas": tuple(config.betas),
        "eps": config.eps,
    }
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError("optimizer.name: adamw_8bit needs the package bitsandbytes") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return optimizer
