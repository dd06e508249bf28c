"""Adapters made by peft itself, as others publish them."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from tests.tiny import tiny_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_peft(folder: Path, base: str | None = None, seed: int = 7, **options: Any) -> Path:
    """Random weights in a LoRA of peft, saved by peft; `base` is what it says of its model."""
    chosen = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], **options}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **chosen))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.save_pretrained(folder, save_embedding_layers=False)
    if base is not None:
        change(folder, base_model_name_or_path=base)
    return folder


def change(folder: Path, **values: Any) -> Path:
    """Other values in adapter_config.json."""
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@torch.no_grad()
def peft_logits(folder: Path, ids_BT: Tensor) -> Tensor:
    """What peft's own model says."""
    model = PeftModel.from_pretrained(tiny_model(), folder).eval()
    return model(input_ids=ids_BT, use_cache=False).logits
