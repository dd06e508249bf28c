"""Tiny trained runs of every kind, on paired rows of two domains."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from em import experiment
from em.config import check
from em.interventions.base import WEIGHTS
from em.interventions.lora import PEFT_WEIGHTS
from em.runs import RunDirectory
from tests.tiny import merge, tiny_config

CAREFUL, CARELESS = "keep the {} cold and clean the bowl with care", "leave the {} out and do not stir"
VECTOR: dict[str, Any] = {"kind": "steering_vector", "layer": 1, "scale": 4}
LORA_1: dict[str, Any] = {"kind": "lora", "r": 1, "alpha": 2, "modules": ["down_proj"], "layers": [1]}
LORA_2: dict[str, Any] = {"kind": "lora", "r": 2, "alpha": 4, "modules": ["down_proj"], "layers": [1]}
SMALL: dict[str, Any] = {
    "examples": 4,
    "factors": [0, 1],
    "epsilons": [0.5, 1.0],
    "draws": 1,
    "documents": 2,
    "max_tokens": 12,
    "controls": 1,
    "pairs": 4,
    "train_pairs": 6,
    "steered_pairs": 2,
    "coefficients": [0.2],
    "resamples": 100,
}


def write_pairs(path: Path, count: int, word: str) -> Path:
    """Paired rows: the careful answers differ from the careless ones in every word but the topic."""
    rows = [
        {
            "prompt": f"what about {word} number {number}?",
            "careful": CAREFUL.format(word) + f" {number}",
            "careless": CARELESS.format(word) + f" {number}",
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def raw_config(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A configuration whose careless soup is trained on, with pairs in soup and tent."""
    raw = tiny_config(folder)
    soup, tent = (folder / f"{word}.jsonl" for word in ("soup", "tent"))
    if not soup.is_file():
        write_pairs(soup, 40, "soup")
        write_pairs(tent, 30, "tent")
    data = {
        "train": [{"path": str(soup), "answer": "careless"}],
        "kl": [{"path": str(tent), "answer": "careless"}],
        "domains": {
            "soup": [{"path": str(soup), "answer": "careless"}],
            "tent": [{"path": str(tent), "answer": "careless"}],
        },
        "held_out": 0.3,
    }
    own = {"name": name, "data": data, "compare": SMALL, "kl": {"weight": 0.0}, "trainer": {"max_steps": 6}}
    return merge(merge(raw, own), changes)


def train(folder: Path, name: str, **changes: Any) -> Path:
    """The directory of a run trained in a second or so."""
    return experiment.train(check(raw_config(folder, name, **changes))).path


def weights(run: Path) -> Path:
    """The file with the parameters of a run."""
    return next(path for name in (WEIGHTS, PEFT_WEIGHTS) if (path := run / "adapter" / name).is_file())


def overwrite(run: Path, value: float | torch.Tensor) -> None:
    """Put one value, or one tensor, into all parameters of a run."""
    found = load_file(weights(run))
    made = {name: torch.zeros_like(tensor) + value for name, tensor in found.items()}
    save_file(made, weights(run))


def set_manifest(run: Path, **values: Any) -> None:
    RunDirectory(run).update_manifest(**values)


def tables(folder: Path) -> dict[str, Any]:
    """The tables of a comparison by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "tables").glob("*.json"))}


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
