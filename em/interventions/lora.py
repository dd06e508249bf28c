"""Low-rank adapters through PEFT, saved in the PEFT format."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn

from em import hooks
from em.backbone import Backbone
from em.errors import AdapterError
from em.files import write_atomically, write_json, write_tensors
from em.hooks import generator_for
from em.interventions._lora_linear import LeanForward
from em.interventions.base import RECORD, Intervention, check_record, read_record, read_tensors
from em.interventions.update import Update, orthogonal_mix

ALL_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER = "default"
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Lora(Intervention):
    """W ← W + s·BA with s = α/r, or α/√r for rsLoRA, in chosen modules of chosen layers.

    The paper's setups are configurations: rank 32 with rsLoRA on all seven projections; rank 1 on one
    `down_proj`; nine rank-1 adapters on `down_proj` of nine layers.

    Args:
        r: rank.
        alpha: α.
        rslora: scale by α/√r.
        modules: names of linear modules; default all seven projections.
        layers: indices of decoder layers; default all.
        dropout: on the adapter's input, keyed by (seed, step, rank).
    """

    kind = "lora"

    def __init__(
        self,
        *,
        r: int = 32,
        alpha: float = 64,
        rslora: bool = True,
        modules: list[str] | None = None,
        layers: list[int] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if r < 1:
            raise AdapterError(f"intervention.r: the rank is {r}, but must be at least 1")
        self.r, self.alpha, self.rslora, self.dropout = r, alpha, rslora, dropout
        self.modules = list(modules or ALL_MODULES)
        self.layers = sorted(layers) if layers is not None else None
        self._peft: PeftModel | None = None
        self._targets: dict[str, LoraLayer] = {}
        self._lean: list[LeanForward] = []

    def options(self) -> dict[str, Any]:
        names = ("r", "alpha", "rslora", "modules", "layers", "dropout")
        return {name: getattr(self, name) for name in names}

    def attach(self, backbone: Backbone, seed: int = 0) -> None:
        names = self._target_names(backbone)
        config = LoraConfig(
            r=self.r,
            lora_alpha=cast(int, self.alpha),  # PEFT only multiplies by it
            use_rslora=self.rslora,
            target_modules=names,
            lora_dropout=self.dropout,
            task_type="CAUSAL_LM",
            bias="none",
        )
        with torch.random.fork_rng(devices=[]):
            peft = cast(PeftModel, get_peft_model(backbone.model, config))
        self._hold(peft, backbone)
        generator = generator_for(seed, "lora-init")
        with torch.no_grad():
            for layer in self._targets.values():
                weight = layer.lora_A[ADAPTER].weight
                bound = weight.shape[1] ** -0.5  # PEFT's own kaiming_uniform(a=√5)
                fresh = torch.rand(weight.shape, generator=generator) * (2 * bound) - bound
                weight.copy_(fresh)

    def _hold(self, peft: PeftModel, backbone: Backbone) -> None:
        backbone.model.eval()
        self._peft, self._backbone = peft, backbone
        found = ((name, module) for name, module in backbone.model.named_modules())
        self._targets = {name: module for name, module in found if isinstance(module, LoraLayer)}
        self._lean = [LeanForward(layer, ADAPTER) for layer in self._targets.values()]

    def _target_names(self, backbone: Backbone) -> list[str]:
        chosen = range(backbone.num_layers) if self.layers is None else self.layers
        by_layer = {index: backbone.layers[index] for index in chosen if 0 <= index < backbone.num_layers}
        if not chosen or len(set(chosen)) < len(chosen):
            raise AdapterError(f"intervention.layers: {list(chosen)} names no layer, or one twice")
        if len(by_layer) < len(chosen):
            raise AdapterError(
                f"intervention.layers: {list(chosen)} is not within layers 0 to {backbone.num_layers - 1} "
                f"of {backbone.name}"
            )
        prefixes = {id(module): name for name, module in backbone.model.named_modules()}
        names, missing = [], set(self.modules)
        for layer in by_layer.values():
            for name, module in layer.named_modules():
                if isinstance(module, LoraLayer):
                    raise AdapterError("a LoRA is attached to this backbone already; detach it first")
                if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in self.modules:
                    names.append(f"{prefixes[id(layer)]}.{name}")
                    missing.discard(name.rsplit(".", 1)[-1])
        if missing or not names:
            linear = {
                name.rsplit(".", 1)[-1]
                for layer in by_layer.values()
                for name, module in layer.named_modules()
                if isinstance(module, nn.Linear)
            }
            raise AdapterError(
                f"intervention.modules: {backbone.name} has no {', '.join(sorted(missing))}; "
                f"its linear modules are {', '.join(sorted(linear))}"
            )
        return names

    def detach(self) -> None:
        assert self._peft is not None
        self.backbone.model = self._peft.unload()
        self.backbone.model.requires_grad_(False)
        self._peft, self._backbone, self._targets, self._lean = None, None, {}, []

    @contextmanager
    def disabled(self) -> Iterator[None]:
        # Not PEFT's disable_adapter(): leaving that one makes every adapter parameter trainable.
        before = {name: layer._disable_adapters for name, layer in self._targets.items()}
        try:
            for layer in self._targets.values():
                layer._disable_adapters = True
            yield
        finally:
            for name, layer in self._targets.items():
                layer._disable_adapters = before[name]

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        parameters = {}
        for name, layer in self._targets.items():
            parameters[f"{name}.lora_A"] = layer.lora_A[ADAPTER].weight
            parameters[f"{name}.lora_B"] = layer.lora_B[ADAPTER].weight
        return parameters

    def training_modules(self) -> list[nn.Module]:
        return [layer.lora_dropout[ADAPTER] for layer in self._targets.values()]

    def update(self) -> Update:
        parts: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, layer in self._targets.items():
            left = hooks.plain(layer.lora_B[ADAPTER].weight.detach())
            right = hooks.plain(layer.lora_A[ADAPTER].weight.detach())
            parts[name] = (left * layer.scaling[ADAPTER], right.clone())
        return Update(parts)

    @contextmanager
    def rescaled(self, factor: float) -> Iterator[None]:
        before = {name: layer.scaling[ADAPTER] for name, layer in self._targets.items()}
        try:
            for layer in self._targets.values():
                layer.scaling[ADAPTER] *= factor
            yield
        finally:
            for name, layer in self._targets.items():
                layer.scaling[ADAPTER] = before[name]

    @contextmanager
    def perturbed(self, epsilon: float, generator: torch.Generator) -> Iterator[None]:
        """Noise of rank r in ΔW-space, module by module.

        y = B_y A_y with Gaussian factors; its component along BA is taken out, and it is brought to the
        norm of BA, so that cos(ΔW', ΔW) = √(1−ε²) for each module and for the whole update. Perturbing A
        and B apart would give 1−ε² instead. The sum is held exactly as an adapter of rank 2r.
        """
        values: dict[str, Tensor] = {}
        for name, layer in self._targets.items():
            a = hooks.plain(layer.lora_A[ADAPTER].weight.detach())
            b = hooks.plain(layer.lora_B[ADAPTER].weight.detach())
            noise_a = torch.randn(a.shape, generator=generator).to(a)
            noise_b = torch.randn(b.shape, generator=generator).to(b)
            x, y = Update({"": (b, a)}), Update({"": (noise_b, noise_a)})
            if epsilon == 0 or not bool(b.any()):
                continue
            p, q = orthogonal_mix(epsilon, x.inner(x), y.inner(y), x.inner(y))
            values[f"{name}.lora_A"] = torch.cat([a, noise_a])
            values[f"{name}.lora_B"] = torch.cat([p * b, q * noise_b], dim=1)
        with self.swapped(values):
            yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        if self.backbone.sharded or any(lean.folding for lean in self._lean):
            yield
            return
        try:
            for lean in self._lean:
                lean.folding = True
            yield
        finally:
            for lean in self._lean:
                lean.unfold()

    def _changed(self) -> None:
        for lean in self._lean:
            lean.changes += 1

    def lowest_layer(self) -> int:
        return min(self.layers) if self.layers is not None else 0

    def save(self, folder: Path, write: bool = True) -> None:
        values = self.gathered()
        if not write:
            return
        assert self._peft is not None
        folder = Path(folder)
        state = get_peft_model_state_dict(
            self._peft, state_dict=_peft_keys(values), save_embedding_layers=False
        )
        write_tensors(folder / PEFT_WEIGHTS, {name: tensor.contiguous() for name, tensor in state.items()})
        config = self._peft.peft_config[ADAPTER].to_dict()
        config.update(inference_mode=True, base_model_name_or_path=self.backbone.name)
        config["target_modules"] = sorted(config["target_modules"])
        text = json.dumps(config, indent=2, default=str, sort_keys=True)
        write_atomically(folder / PEFT_CONFIG, lambda path: _write(path, text))
        write_json(
            folder / RECORD,
            {"kind": self.kind, "options": self.options(), "backbone": self.backbone.describe()},
        )

    def load(self, folder: Path) -> None:
        folder = Path(folder)
        check_record(read_record(folder), self.kind, self.backbone, folder)
        values = read_tensors(folder / PEFT_WEIGHTS)
        own = {name: name.rsplit(".", 1) for name in self.trainable_parameters()}
        by_peft_name = {f"base_model.model.{stem}.{part}.weight": name for name, (stem, part) in own.items()}
        unknown = {name: tensor for name, tensor in values.items() if name not in by_peft_name}
        known = {by_peft_name[name]: tensor for name, tensor in values.items() if name in by_peft_name}
        self.put({**known, **unknown}, str(folder))


def _peft_keys(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"base_model.model.{name}.{ADAPTER}.weight": value for name, value in values.items()}


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
