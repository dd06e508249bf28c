"""Configuration: YAML to checked dataclasses, and components built by name."""

from em.config.build import build, resolve
from em.config.check import check
from em.config.compose import Experiment, Suite, load, load_comparison, load_pool, to_dict, to_yaml
from em.config.evaluation import load_evaluation
from em.config.facts import ModelFacts, model_facts
from em.config.schema import Config

__all__ = [
    "Config",
    "Experiment",
    "ModelFacts",
    "Suite",
    "build",
    "check",
    "load",
    "load_comparison",
    "load_evaluation",
    "load_pool",
    "model_facts",
    "resolve",
    "to_dict",
    "to_yaml",
]
