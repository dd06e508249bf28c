"""From a configuration to its peak memory and time, without loading a model."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from em.config.schema import Config
from em.errors import ConfigError
from em.planning.arithmetic import Flops, Passes, layer_forward, step_flops
from em.planning.devices import GPUS, Device, rate
from em.planning.kept import Numbers
from em.planning.memory import Setting, peak
from em.planning.rows import Work
from em.planning.shapes import Shape, shape_of
from em.planning.trained import Trained, trained_of

UTILISATION = 0.4
OFTEN = 1.2  # epochs from which lower states are stored, em/modules/frozen.py
PRECISIONS = {"32-true": None, "32": None, "bf16-true": 2, "16-true": 2}


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Args:
        parts: bytes of one device at its peak, by part.
        flops: of one optimizer step of one process.
        rate: operations per second of the device's matrix products.
        utilisation: assumed share of it that a step reaches.
        prepare: operations of the passes before the first step, at most.
        fits: peak bytes on other devices, by name.
    """

    name: str
    model: str
    shape: Shape
    trained: Trained
    setting: Setting
    work: Work
    passes: Passes
    device: Device
    parts: dict[str, float]
    flops: Flops
    rate: float
    utilisation: float
    prepare: float
    fits: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes."""
        return sum(self.parts.values())

    @property
    def seconds(self) -> float:
        """Of one optimizer step."""
        return self.flops.total / (self.rate * self.utilisation)

    @property
    def epoch_hours(self) -> float:
        return self.seconds * self.work.steps / 3600

    def to_dict(self) -> dict[str, Any]:
        """For other programs: bytes, operations, seconds."""
        return {
            "name": self.name,
            "model": self.model,
            "parameters": self.shape.parameters,
            "trained_parameters": self.trained.parameters,
            "strategy": self.setting.strategy,
            "processes": self.setting.processes,
            "device": self.device.name,
            "rows": self.work.source,
            "peak_bytes": round(self.peak),
            "parts_bytes": {name: round(value) for name, value in self.parts.items()},
            "fits": {
                name: {"peak_bytes": round(value), "fits": value <= GPUS[name].memory}
                for name, value in self.fits.items()
            },
            "step_flops": {name: float(value) for name, value in vars(self.flops).items()},
            "flops_per_second": self.rate,
            "utilisation": self.utilisation,
            "step_seconds": self.seconds,
            "steps_per_epoch": self.work.steps,
            "epoch_hours": self.epoch_hours,
            "epochs": self.work.epochs,
            "prepare_seconds_at_most": self.prepare / (self.rate * self.utilisation),
            "tokens_per_second": self.work.tokens * self.setting.processes / self.seconds,
        }


def make_plan(config: Config, work: Work, device: Device, utilisation: float = UTILISATION) -> Plan:
    """The plan of one experiment on devices of one kind.

    Raises:
        ConfigError: model, intervention, precision or utilisation cannot be planned.
    """
    if not 0 < utilisation <= 1:
        raise ConfigError(f"--utilisation: expected above 0 and at most 1, got {utilisation:g}")
    shape = shape_of(config.backbone.model, config.backbone.revision)
    trained = trained_of(config, shape)
    _check_layers(trained, shape, config)
    setting = setting_of(config, shape, device)
    passes = _passes(config, trained, setting, work)
    fits = {}
    for name, gpu in GPUS.items():
        there = setting_of(config, shape, gpu)
        fits[name] = sum(peak(shape, trained, work.largest, there, gpu).values())
    return Plan(
        config.name,
        config.backbone.model,
        shape,
        trained,
        setting,
        work,
        passes,
        device,
        peak(shape, trained, work.largest, setting, device),
        step_flops(shape, trained, work, passes),
        rate(device, setting.how.width),
        utilisation,
        _prepare(shape, trained, work, passes),
        fits,
    )


def processes_of(config: Config) -> int:
    """Processes of a run, as `em.building.world_size` counts them."""
    devices = str(config.trainer.devices)
    if "," in devices:
        count = len([part for part in devices.split(",") if part.strip()])
    elif devices in ("auto", "-1"):
        count = max(1, torch.cuda.device_count())
    elif devices.isdigit() and int(devices) > 0:
        count = int(devices)
    else:
        raise ConfigError(f"trainer.devices: expected a number of devices, got {devices!r}")
    return count * config.trainer.num_nodes


def setting_of(config: Config, shape: Shape, device: Device) -> Setting:
    """What memory depends on, on a kind of device.

    Raises:
        ConfigError: a precision whose memory is not known.
    """
    precision = config.trainer.precision
    if precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision: the memory of {precision} is not known here; plan with 32-true and "
            "backbone.dtype=bfloat16 or float32"
        )
    forced = PRECISIONS[precision]
    backbone = config.backbone
    loaded = {"float32": 4, "auto": 2 if shape.half else 4}.get(backbone.dtype, 2)
    width, adapter = forced or loaded, forced or 4
    plain = backbone.attention in ("auto", "sdpa") and shape.family != "gemma2"
    packed = plain and (backbone.packing == "always" or (backbone.packing == "auto" and device.cpu))
    processes = processes_of(config)
    full = config.intervention.get("kind") == "full_finetune"
    reference = config.reference
    strategy = config.trainer.strategy
    return Setting(
        Numbers(
            width,
            adapter,
            packed,
            eager=backbone.attention == "eager",
            checkpointing=backbone.gradient_checkpointing,
            cpu=device.cpu,
        ),
        "single" if processes == 1 else "ddp" if strategy == "auto" else strategy,
        processes,
        max(1, config.data.batch_size // (config.data.micro_batch_size * processes)),
        2.0 if config.optimizer.name == "adamw_8bit" else 2.0 * (width if full else adapter),
        config.kl.direction,
        shape_of(reference.model, reference.revision).parameters if reference is not None else 0,
    )


def _passes(config: Config, trained: Trained, setting: Setting, work: Work) -> Passes:
    whole = setting.strategy == "fsdp2"
    states = config.states
    often = states.lower == "always" or (states.lower == "auto" and work.epochs > OFTEN)
    return Passes(
        packed=setting.how.packed,
        checkpointing=setting.how.checkpointing,
        shared=not whole,
        stored_reference=states.reference != "never" and config.kl.weight > 0 and not whole,
        stored_lower=often and trained.lowest > 0 and not whole,
        own_reference=config.reference is not None,
    )


def _prepare(shape: Shape, trained: Trained, work: Work, passes: Passes) -> float:
    """Operations of storing what the first epoch needs."""
    none = replace(passes, stored_reference=False, stored_lower=False)
    step = step_flops(shape, trained, work, none)
    micro = work.typical[0]
    kl = layer_forward(shape, micro.tokens(passes.packed, True), micro.pairs(passes.packed, True))
    below = 0.0 if passes.own_reference else kl * trained.lowest * work.accumulate
    total = (step.reference + below) * passes.stored_reference + step.lower * passes.stored_lower
    return total * work.steps * min(1.0, work.epochs)


def _check_layers(trained: Trained, shape: Shape, config: Config) -> None:
    named = [*trained.modules, *([trained.vector[0]] if trained.vector else [])]
    outside = [layer for layer in named if not 0 <= layer < shape.layers]
    if outside:
        raise ConfigError(
            f"intervention: backbone.model {config.backbone.model} has layers 0 to {shape.layers - 1}, "
            f"got {', '.join(map(str, outside))}"
        )
