"""Finetune, measure and undo emergent misalignment on a frozen chat model."""

__version__ = "0.1.0"
