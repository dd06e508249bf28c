"""Our side of the loss at a large vocabulary: em.modules.losses on a backbone with that head."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.architectures import byte_tokenizer
from benchmarks.machine import clock
from benchmarks.memory import now_mb, peak_mb, restart_peak
from benchmarks.peers.head import inputs
from benchmarks.settings import Settings
from em.backbone import Backbone
from em.modules.losses import ReferenceStates, cross_entropy_term, divergence_term, head_sum


def run(settings: Settings, work: Path) -> dict[str, Any]:
    """Peak memory above what the head and the hidden states themselves take."""
    weight_VD, hidden_ND, reference_ND, targets_N = inputs(settings)
    backbone = _backbone(weight_VD)
    del weight_VD
    states = ReferenceStates.of(backbone, reference_ND)
    _losses(backbone, hidden_ND[:8], states, targets_N[:8])  # warm-up
    held = now_mb()
    restarted = restart_peak()
    began = clock()
    losses, grad_ND = _losses(backbone, hidden_ND, states, targets_N)
    seconds = clock() - began
    return {
        "seconds": seconds,
        "peak_mb": peak_mb() - held,
        "restarted": restarted,
        "losses": {"losses": losses, "gradient": [float(grad_ND.norm())]},
    }


def _losses(
    backbone: Backbone, hidden_ND: torch.Tensor, states: ReferenceStates, targets_N: torch.Tensor
) -> tuple[list[float], torch.Tensor]:
    hidden_ND = hidden_ND.detach().requires_grad_()
    count = len(targets_N)
    sft = head_sum(backbone, hidden_ND, cross_entropy_term(targets_N)) / count
    kl = head_sum(backbone, hidden_ND, divergence_term(states, "forward", 1.0)) / count
    (sft + kl).backward()
    assert hidden_ND.grad is not None
    return [float(sft.detach()), float(kl.detach())], hidden_ND.grad


def _backbone(weight_VD: torch.Tensor) -> Backbone:
    vocabulary, width = weight_VD.shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(weight_VD)
    return Backbone(model, byte_tokenizer(), "head")
