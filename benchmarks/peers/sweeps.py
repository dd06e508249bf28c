"""The sweeps with one full HF forward pass for every variant, model kept loaded. Imports nothing of em."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.common import IGNORED, Steered, model_of, padded, with_lora
from benchmarks.settings import Settings, read_plan

ROWS = 8  # of one forward pass


@torch.no_grad()
def stability_sweep(settings: Settings, work: Path) -> dict[str, Any]:
    """Seconds of the whole sweep, every pass at the mean of those that were run; rows sorted by length."""
    plan, sizes = read_plan(work), settings.sizes
    rows = sorted(plan["examples"], key=lambda row: len(row["ids"]))
    batches = [padded(rows[at : at + ROWS], plan["pad"]) for at in range(0, len(rows), ROWS)]
    model = model_of(settings, plan)
    run = _vector_sweep if sizes.get("vector") else _lora_sweep
    sweeping, losses = run(sizes, work, plan, model, batches)
    passes = len(sizes["epsilons"]) * sizes["draws"] * len(plan["solutions"])
    each = sweeping / passes
    total = each * sizes["passes"] * len(plan["solutions"])
    return {"seconds": total, "once": 0.0, "each": each, "losses": losses}


Losses = dict[str, list[float]]


def _vector_sweep(
    sizes: dict[str, Any], work: Path, plan: dict[str, Any], model: Any, batches: list[dict[str, Tensor]]
) -> tuple[float, Losses]:
    """The noise is that of our side, so every loss can be compared."""
    steered = Steered(model, plan["layer"], plan["vector_scale"], model.config.hidden_size)
    losses: Losses = {"own": [], "noisy": []}
    sweeping = 0.0
    for number, folder in enumerate(plan["solutions"]):
        (own,) = load_file(Path(folder) / "intervention.safetensors").values()
        noise = load_file(work / f"noise{number}.safetensors")
        steered.vector.copy_(own)
        losses["own"].append(_mean_loss(model, batches))
        began = time.perf_counter()
        for k in range(len(sizes["epsilons"])):
            for draw in range(sizes["draws"]):
                steered.vector.copy_(noise[f"{k} {draw} vector"])
                losses["noisy"].append(_mean_loss(model, batches))
        sweeping += time.perf_counter() - began
    return sweeping, losses


def _lora_sweep(
    sizes: dict[str, Any], work: Path, plan: dict[str, Any], model: Any, batches: list[dict[str, Tensor]]
) -> tuple[float, Losses]:
    """The timed passes put noise into A and B as they are, which costs the least.

    em's noise is exact in the space of the update and has rank 2r, so those losses are other ones. What is
    compared is the solution itself and, outside the clock, one of em's draws as an adapter of rank 2r.
    """
    peft = with_lora(model, Path(plan["solutions"][0]))
    losses: Losses = {"own": [], "noisy": []}
    sweeping = 0.0
    for number, folder in enumerate(plan["solutions"]):
        own = load_file(Path(folder) / "adapter_model.safetensors")
        _put(peft, own, "default")
        losses["own"].append(_mean_loss(peft, batches))
        began = time.perf_counter()
        for epsilon in sizes["epsilons"]:
            for draw in range(sizes["draws"]):
                with _noisy(peft, epsilon, draw):
                    _mean_loss(peft, batches)
        sweeping += time.perf_counter() - began
        losses["noisy"].append(_wide_loss(peft, work / f"noise{number}.safetensors", Path(folder), batches))
    return sweeping, losses


def _put(peft: Any, values: dict[str, Tensor], adapter: str) -> None:
    parameters = dict(peft.named_parameters())
    for name, value in values.items():
        parameters[name.replace(".weight", f".{adapter}.weight")].copy_(value)


@contextmanager
def _noisy(peft: Any, epsilon: float, draw: int) -> Iterator[None]:
    """√(1−ε²)·x + ε·y with y of the size of x in every A and B, in place; then x again."""
    generator = torch.Generator().manual_seed(draw)
    parameters = [one for name, one in peft.named_parameters() if ".lora_" in name and ".default." in name]
    kept = [one.clone() for one in parameters]
    for one in parameters:
        noise = torch.randn(one.shape, generator=generator).to(one)
        one.mul_(math.sqrt(1 - epsilon**2)).add_(noise * (epsilon * one.norm() / noise.norm()))
    try:
        yield
    finally:
        for one, value in zip(parameters, kept, strict=True):
            one.copy_(value)


def _wide_loss(peft: Any, noise: Path, folder: Path, batches: list[dict[str, Tensor]]) -> float:
    """The loss with em's perturbed update, which has twice the rank, outside the clock."""
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    # rsLoRA scales by α/√r: with twice the rank the same scale needs √2·α.
    config.r, config.lora_alpha = 2 * config.r, config.lora_alpha * math.sqrt(2)
    peft.add_adapter("wide", config)
    peft.set_adapter("wide")
    values = {
        f"base_model.model.{name.removeprefix('0 0 ')}.weight": value
        for name, value in load_file(noise).items()
    }
    _put(peft, values, "wide")
    loss = _mean_loss(peft, batches)
    peft.delete_adapter("wide")
    peft.set_adapter("default")
    return loss


def _mean_loss(model: Any, batches: list[dict[str, Tensor]]) -> float:
    total, count = 0.0, 0
    for batch in batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        labels = batch["labels"][:, 1:]
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        total += float(losses)
        count += int((labels != IGNORED).sum())
    return total / count


@torch.no_grad()
def significance_sweep(settings: Settings, work: Path) -> dict[str, Any]:
    """Seconds of the whole sweep; the reference's log-probabilities of a batch are computed once and kept."""
    plan, sizes = read_plan(work), settings.sizes
    vectors_VD = load_file(work / "vectors.safetensors")["vectors"]
    documents = sorted(plan["documents"], key=len)
    rows = [{"ids": ids, "answer": [0] * len(ids)} for ids in documents]
    size = sizes["batch"]
    batches = [padded(rows[at : at + size], plan["pad"]) for at in range(0, len(rows), size)]
    model = model_of(settings, plan)
    steered = Steered(model, plan["layer"], 1.0, model.config.hidden_size)
    _log_probabilities(model, batches[0])  # warm-up
    once, varying = 0.0, 0.0
    sums, tokens = [0.0] * len(vectors_VD), 0
    for batch in batches:
        began = time.perf_counter()
        with steered.disabled():
            reference_NV = _log_probabilities(model, batch)
        once += time.perf_counter() - began
        began = time.perf_counter()
        for number, vector in enumerate(vectors_VD):
            steered.vector.copy_(vector)
            adapted_NV = _log_probabilities(model, batch)
            sums[number] += float(F.kl_div(adapted_NV, reference_NV, reduction="sum", log_target=True))
        varying += time.perf_counter() - began
        tokens += len(reference_NV)
    each = varying / len(vectors_VD)
    return {
        "seconds": once + each * sizes["norms"] * sizes["vectors"],
        "once": once,
        "each": each,
        "losses": {"kl": [total / tokens for total in sums]},
    }


def _log_probabilities(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of every real token's successor, fp32, shape (N, V)."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return F.log_softmax(logits[batch["attention_mask"].bool()].float(), dim=-1)
