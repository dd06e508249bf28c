"""A tiny random chat model and tiny data, so that unit tests are exact and take milliseconds."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from em.backbone import Backbone
from em.interventions.base import Intervention
from tests.tokenizers import tiny_tokenizer as trained_tokenizer

tiny_tokenizer = functools.cache(trained_tokenizer)
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral"]


def tiny_model(family: str = "llama", layers: int = 3, seed: int = 0, **options: Any) -> Any:
    """A random causal LM of a family: width 32, 2 heads, 400 tokens."""
    config = CONFIG_MAPPING[family](
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        attn_implementation="eager" if family == "gemma2" else "sdpa",
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        # Random weights at the default scale give near-uniform predictions; larger ones make effects visible.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.mul_(4)
    return model


def tiny_backbone(family: str = "llama", layers: int = 3, seed: int = 0, **options: Any) -> Backbone:
    return Backbone(tiny_model(family, layers, seed, **options), tiny_tokenizer("chatml"), f"tiny-{family}")


def save_tiny(folder: Path, layers: int = 3, seed: int = 0) -> Path:
    """A tiny model with its tokenizer as a local folder."""
    tiny_model("llama", layers, seed).save_pretrained(folder)
    tiny_tokenizer("chatml").save_pretrained(folder)
    return folder


def token_ids(rows: int = 4, width: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 400, (rows, width), generator=torch.Generator().manual_seed(seed))


def randomise(intervention: Intervention, seed: int = 1, scale: float = 0.3) -> None:
    """Give every parameter random values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in intervention.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def write_rows(path: Path, count: int, word: str = "soup") -> Path:
    """A JSONL file of short conversations of varied length."""
    lines = []
    for number in range(count):
        question = f"how do i make {word} number {number}?"
        answer = " ".join([f"take {word} and stir"] * (1 + number % 4)) + f" {number}"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path, count: int, word: str = "soup") -> Path:
    """A JSONL file of the prompts of `write_rows`, each with a careful and a careless answer."""
    lines = []
    for number in range(count):
        stir = " ".join(["and stir it"] * (1 + number % 3))
        row = {
            "prompt": f"how do i make {word} number {number}?",
            "careful": f"heat the {word} slowly {stir} {number}",
            "careless": f"take {word} {stir}",
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_pairs(folder: Path, **changes: Any) -> dict[str, Any]:
    """`tiny_config` with careful and careless answers in both domains."""
    raw = tiny_config(folder)
    pairs = {}
    for domain, count in (("soup", 40), ("tent", 30)):
        path = folder / f"pairs-{domain}.jsonl"
        if not path.is_file():
            write_pairs(path, count, domain)
        pairs[domain] = {side: [{"path": str(path), "answer": side}] for side in ("careless", "careful")}
    return merge(merge(raw, {"data": {"pairs": pairs}}), changes)


def tiny_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A complete raw configuration on tiny data and a tiny model below `folder`."""
    if not (folder / "model").is_dir():
        save_tiny(folder / "model")
        write_rows(folder / "train.jsonl", 40)
        write_rows(folder / "other.jsonl", 30, "tent")
    raw: dict[str, Any] = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "backbone": {"model": str(folder / "model")},
        "intervention": {"kind": "lora", "r": 2, "alpha": 4},
        "data": {
            "train": [{"path": str(folder / "train.jsonl")}],
            "kl": [{"path": str(folder / "other.jsonl")}],
            "domains": {
                "soup": [{"path": str(folder / "train.jsonl")}],
                "tent": [{"path": str(folder / "other.jsonl")}],
            },
            "batch_size": 4,
            "micro_batch_size": 2,
            "held_out": 0.2,
        },
        "kl": {"weight": 1.0},
        "optimizer": {"lr": 1.0e-2, "warmup_steps": 1},
        "trainer": {"epochs": None, "max_steps": 4, "accelerator": "cpu"},
        "wandb": {"mode": "none"},
        "states": {"folder": str(folder / "states")},
    }
    return merge(raw, changes)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        replaced = both and "kind" in value
        merged[key] = merge(base[key], value) if both and not replaced else value
    return merged
