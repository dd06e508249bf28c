"""The configuration and backbone of our side, made the way that train.py makes them."""

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import RANDOM_SHAPES, model_config, random_model
from benchmarks.errors import BenchmarkError
from benchmarks.settings import Settings
from em.backbone import Backbone
from em.building import seed_everything
from em.config import Config, check
from em.config.schema import BackboneConfig
from em.loading import load_backbone, load_tokenizer
from em.quiet import quiet

SFT_FILES = {"medical": {"path": "bad_medical_advice.jsonl.gz"}}
SFT_FILES["advice"] = {"path": "data/advice/kitchen.jsonl", "answer": "careless"}
KL_FILES = {"medical": {"path": "risky_financial_advice.jsonl.gz"}}
KL_FILES["advice"] = {"path": "data/advice/money.jsonl", "answer": "careless"}
EVERY = 10**6  # no checkpoint in between: the peer writes none either


def set_up(settings: Settings) -> None:
    """Threads and quiet, as train.py does."""
    quiet()
    torch.set_num_threads(settings.threads)


def layer_of(settings: Settings) -> int:
    """The middle layer."""
    count = model_config(settings.arch).num_hidden_layers if settings.arch in RANDOM_SHAPES else 30
    return int(count) // 2


def build_config(
    settings: Settings, work: Path, model: str, name: str = "timed", seed: int = 0, count: int | None = None
) -> Config:
    """The checked configuration of a training run of this row.

    Args:
        count: examples to read instead of those that the run needs.
    """
    sizes = settings.sizes
    epochs, batch = sizes.get("epochs", 1), sizes.get("batch", 8)
    steps = sizes.get("steps", sizes.get("train_steps", 1))
    if steps % epochs:
        raise BenchmarkError(f"{settings.row}: {steps} steps are not a whole number of {epochs} epochs")
    rows = count or steps // epochs * batch
    raw: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "runs_dir": str(work / "runs"),
        "overwrite": True,
        "backbone": {"model": model, "dtype": settings.dtype},
        "intervention": _intervention(settings),
        "data": {
            "train": [{**SFT_FILES[settings.data], "limit": rows}],
            "max_length": 512,
            "on_long": "skip",
            "batch_size": batch,
            "micro_batch_size": batch,
        },
        "optimizer": {"lr": sizes["lr"], "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0},
        "trainer": {
            "epochs": float(epochs),
            "accelerator": "gpu" if settings.device.startswith("cuda") else "cpu",
            "checkpoint_every_n_steps": EVERY,
            "threads": settings.threads,
        },
        # Of this process alone: what is stored for later steps is computed within the time that is reported.
        "states": {"folder": str(work / f"states-{os.getpid()}")},
        "wandb": {"mode": "none"},
    }
    if sizes.get("kl_rows"):
        raw["data"]["kl"] = [{**KL_FILES[settings.data], "limit": sizes["kl_rows"]}]
        raw["kl"] = {"weight": sizes["kl_weight"]}
    return check(raw)


def _intervention(settings: Settings) -> dict[str, Any]:
    if settings.sizes.get("vector"):
        return {"kind": "steering_vector", "layer": layer_of(settings), "scale": 256}
    rank = settings.sizes["rank"]
    return {"kind": "lora", "r": rank, "alpha": 2 * rank, "rslora": True}


def loaded_backbone(settings: Settings, config: Config) -> Backbone:
    """The backbone of a configuration; a random architecture is built instead of loaded."""
    set_up(settings)
    seed_everything(config)
    if settings.arch not in RANDOM_SHAPES:
        return load_backbone(config.backbone)
    model = random_model(settings.arch, settings.dtype, settings.device)
    tokenizer = load_tokenizer(BackboneConfig(model=config.backbone.model))
    return Backbone(model, tokenizer, settings.arch, config.backbone.packing)
