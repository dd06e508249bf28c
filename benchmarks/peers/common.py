"""What the peers share: the model, the same initial adapter, padded batches. Imports nothing of em."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from benchmarks.architectures import load_model
from benchmarks.machine import clock
from benchmarks.settings import Settings

IGNORED = -100
# As in HF's Trainer and in em: AdamW with these betas, clipping at 1, a constant rate, no decay.
SAME = {
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "num_train_epochs": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "train_sampling_strategy": "sequential",
}


def model_of(settings: Settings, plan: dict[str, Any]) -> Any:
    """The frozen model."""
    return load_model(settings.arch, plan["model"], settings.dtype, settings.device)


def with_lora(model: Any, folder: Path) -> Any:
    """A PEFT model with the values that em's LoRA was saved with."""
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    peft = get_peft_model(model, config)
    result = set_peft_model_state_dict(peft, load_file(folder / "adapter_model.safetensors"))
    if result.unexpected_keys:
        raise ValueError(f"{folder}: PEFT does not know {result.unexpected_keys[:3]}")
    return peft


class Steered(nn.Module):
    """h ← h + α·v on the output of one MLP by a forward hook, which can be switched off."""

    def __init__(self, model: Any, layer: int, scale: float, width: int):
        super().__init__()
        self.scale, self.on = scale, True
        device = next(model.parameters()).device
        self.vector = nn.Parameter(torch.zeros(width, device=device))
        model.model.layers[layer].mlp.register_forward_hook(self._hook)

    def _hook(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + (self.scale * self.vector).to(output.dtype) if self.on else output

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True


def labels_of(row: dict[str, Any]) -> list[int]:
    """Token ids where the loss counts, −100 elsewhere."""
    return [one if answer else IGNORED for one, answer in zip(row["ids"], row["answer"], strict=True)]


def padded(rows: Sequence[dict[str, Any]], pad: int, prefix: str = "") -> dict[str, Tensor]:
    """input_ids, attention_mask and labels of rows, padded on the right."""
    width = max(len(row["ids"]) for row in rows)

    def fill(values: Sequence[int], value: int) -> list[int]:
        return [*values, *([value] * (width - len(values)))]

    return {
        f"{prefix}input_ids": torch.tensor([fill(row["ids"], pad) for row in rows]),
        f"{prefix}attention_mask": torch.tensor([fill([1] * len(row["ids"]), 0) for row in rows]),
        f"{prefix}labels": torch.tensor([fill(labels_of(row), IGNORED) for row in rows]),
    }


class Times(TrainerCallback):
    """When training began and when every step ended."""

    def __init__(self, device: str):
        self.device = device
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(clock(self.device))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(clock(self.device))

    def record(self) -> dict[str, Any]:
        """Seconds of all steps and of each."""
        steps = [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]
        return {"seconds": self.times[-1] - self.times[0], "steps": steps}


def trained(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Copies of parameters, to put back after a warm-up."""
    return [one.detach().clone() for one in parameters]


@torch.no_grad()
def put_back(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
        parameter.grad = None
