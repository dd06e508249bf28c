"""Callbacks that behave badly."""

import random

import numpy as np
import torch

from em.callbacks.base import MeasurementCallback, RunContext
from em.errors import MeasurementError


class Rude(MeasurementCallback):
    """Draws random numbers, flips modes and flags, leaves gradients. Logged: nothing."""

    def measure(self, context: RunContext) -> None:
        torch.rand(3)
        random.random()
        np.random.rand(3)
        context.backbone.train()
        for parameter in context.backbone.parameters():
            parameter.requires_grad_(True)
        _, rows = next(context.data.held_out(list(context.data.domains)))
        context.backbone.trunk(rows.input_ids_BT).sum().backward()
        for parameter in context.backbone.parameters():
            parameter.requires_grad_(False)


class Failing(MeasurementCallback):
    """Fails as a measurement with an empty group does. Logged: nothing."""

    def measure(self, context: RunContext) -> None:
        raise MeasurementError("there is no misaligned answer to average")
