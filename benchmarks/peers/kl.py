"""The paper's method on the HF Trainer, as its published code does it. Imports nothing of em.

One forward pass with full logits for the SFT batch; a KL batch through the model with full logits; the
reference by the same model with its adapter off, without gradient, with full logits. KL in fp32 over the
positions that predict an answer token, mean over those.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from benchmarks.peers.common import (
    IGNORED,
    SAME,
    Steered,
    Times,
    model_of,
    padded,
    put_back,
    trained,
    with_lora,
)
from benchmarks.settings import Settings, read_plan

KL = "kl_"
SCALE = 256.0


class KLTrainer(Trainer):
    """SFT loss plus weight × KL(reference ‖ model) of a second batch."""

    weight: float
    reference: Callable[[], AbstractContextManager[Any]]
    sft_losses: list[Tensor]
    kl_losses: list[Tensor]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        kl_inputs = {key.removeprefix(KL): inputs.pop(key) for key in list(inputs) if key.startswith(KL)}
        sft = model(**inputs, use_cache=False).loss
        labels_BT = kl_inputs.pop("labels")
        at_BT = labels_BT[:, 1:] != IGNORED
        with torch.no_grad(), self.reference():
            reference = model(**kl_inputs, use_cache=False).logits
        adapted = model(**kl_inputs, use_cache=False).logits
        reference_NV = F.log_softmax(reference[:, :-1][at_BT].float(), dim=-1)
        adapted_NV = F.log_softmax(adapted[:, :-1][at_BT].float(), dim=-1)
        kl = F.kl_div(adapted_NV, reference_NV, reduction="batchmean", log_target=True)
        self.sft_losses.append(sft.detach())
        self.kl_losses.append(kl.detach())
        return sft + self.weight * kl


class _Pairs(torch.utils.data.Dataset[tuple[dict[str, Any], dict[str, Any]]]):
    """An SFT row and a KL row for each place in the order."""

    def __init__(self, plan: dict[str, Any], steps: int):
        chosen = plan["steps"][:steps]
        self.sft = [plan["sft"][index] for step in chosen for index in step["sft"]]
        self.kl = [plan["kl"][index] for step in chosen for index in step["kl"]]

    def __len__(self) -> int:
        return len(self.sft)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.sft[index], self.kl[index]


def run(settings: Settings, work: Path) -> dict[str, Any]:
    """One step to warm up, then all against the clock."""
    plan = read_plan(work)
    model = model_of(settings, plan)
    if settings.sizes.get("vector"):
        steered = Steered(model, plan["layer"], SCALE, model.config.hidden_size)
        model.add_module("steered", steered)
        reference: Callable[[], AbstractContextManager[Any]] = steered.disabled
    else:
        model = with_lora(model, work / "adapter")
        reference = model.disable_adapter
    parameters = [one for one in model.parameters() if one.requires_grad]
    initial = trained(parameters)
    _trainer(settings, work, plan, model, reference, 1).train()
    put_back(parameters, initial)
    trainer = _trainer(settings, work, plan, model, reference, len(plan["steps"]))
    times = Times(settings.device)
    trainer.add_callback(times)
    trainer.train()
    losses = {"sft": trainer.sft_losses, "kl": trainer.kl_losses}
    return {
        **times.record(),
        "tokens": sum(plan["tokens"]),
        "losses": {name: [float(one) for one in values] for name, values in losses.items()},
    }


def _trainer(
    settings: Settings,
    work: Path,
    plan: dict[str, Any],
    model: nn.Module,
    reference: Callable[[], AbstractContextManager[Any]],
    steps: int,
) -> KLTrainer:
    def collate(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Tensor]:
        sft, kl = zip(*pairs, strict=True)
        return padded(sft, plan["pad"]) | padded(kl, plan["pad"], KL)

    options: dict[str, Any] = dict(SAME)
    arguments = TrainingArguments(
        output_dir=str(work / "hf"),
        per_device_train_batch_size=len(plan["steps"][0]["sft"]),
        learning_rate=settings.sizes["lr"],
        remove_unused_columns=False,
        bf16=settings.dtype == "bfloat16",
        use_cpu=settings.device == "cpu",
        **options,
    )
    trainer = KLTrainer(model=model, args=arguments, train_dataset=_Pairs(plan, steps), data_collator=collate)
    trainer.weight, trainer.reference = plan["kl_weight"], reference
    trainer.sft_losses, trainer.kl_losses = [], []
    return trainer
