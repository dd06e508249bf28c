"""Peak memory of one device, by part."""

from dataclasses import dataclass

from em.modules.losses import CHUNK_ELEMENTS
from em.planning.devices import Device
from em.planning.kept import SINGLE, Numbers, kept_bytes
from em.planning.rows import Micro
from em.planning.shapes import Shape
from em.planning.trained import Trained

# Copies of a chunk of fp32 logits that a term holds at its peak, tests/planning/test_memory.py.
CE_CHUNKS, KL_CHUNKS = 3, {"forward": 7, "reverse": 7, "js": 9}
NORM_DOUBLES = 16  # bytes per weight while ‖ΔW‖ of one tensor is summed in double precision


@dataclass(frozen=True)
class Setting:
    """What the memory of a run depends on besides model, intervention and rows.

    Args:
        how: number formats and layout.
        strategy: single, ddp or fsdp2.
        processes: that share the work.
        accumulate: micro-batches per step; with more than one, gradients stay during the forward pass.
        states: bytes of optimizer states for each trained parameter.
        direction: of the KL term.
        reference: parameters of another checkpoint that is the reference; 0: the backbone itself.
    """

    how: Numbers
    strategy: str
    processes: int
    accumulate: int
    states: float
    direction: str
    reference: int = 0

    @property
    def sharded(self) -> int:
        """In how many parts parameters are split."""
        return self.processes if self.strategy == "fsdp2" else 1


def peak(shape: Shape, trained: Trained, micro: Micro, setting: Setting, device: Device) -> dict[str, float]:
    """Bytes by part, at the moment of an optimizer step that takes the most."""
    lasting = _lasting(shape, trained, setting)
    moments = [
        _losses(shape, trained, micro, setting),
        _backward(shape, trained, micro, setting),
        _update(shape, trained, setting, device),
    ]
    moment = max(moments, key=lambda parts: sum(parts.values()))
    live = sum(value for name, value in lasting.items() if "weights" not in name) + sum(moment.values())
    parts = {**lasting, **moment}
    parts["allocator, held but not live"] = (device.slack - 1) * live
    parts["runtime"] = device.runtime
    return {name: value for name, value in parts.items() if value}


def _width(trained: Trained, how: Numbers) -> int:
    """Bytes of a trained parameter, and of its gradient."""
    return how.width if trained.full else how.adapter


def _gradients(trained: Trained, setting: Setting) -> float:
    return trained.parameters * _width(trained, setting.how) / setting.sharded


def _lasting(shape: Shape, trained: Trained, setting: Setting) -> dict[str, float]:
    how, parts = setting.how, {}
    parts["weights"] = shape.parameters * how.width / setting.sharded
    # Not sharded under FSDP2: `FullFinetune` takes its copy before the weights are split.
    parts["original weights (reference, norm)"] = trained.parameters * how.width * float(trained.full)
    parts["other reference's weights"] = float(setting.reference * how.width)
    if not trained.full:
        parts["adapter"] = _gradients(trained, setting)
    parts["optimizer states"] = trained.parameters * setting.states / setting.sharded
    if setting.strategy == "ddp":
        parts["gradient buckets (ddp)"] = _gradients(trained, setting)
    if setting.strategy == "fsdp2":  # two layers, one fetched ahead, and what is outside the layers
        gathered = (2 * shape.layer_parameters + shape.outer_parameters) * how.width
        parts["gathered layers (fsdp2)"] = float(gathered)
        if trained.full:  # their gradients before they are split
            parts["gradients before the split"] = float(gathered)
    return parts


def _kept(shape: Shape, trained: Trained, micro: Micro, how: Numbers) -> dict[str, float]:
    tokens, pairs = micro.tokens(how.packed), micro.pairs(how.packed)
    kept = kept_bytes(shape, trained, how, tokens, pairs)
    selected = micro.sft_positions + micro.kl_positions
    rows = (len(micro.sft) + len(micro.kl)) * micro.width  # unpacked again for the losses
    entering = tokens if trained.lowest else 0
    return {
        "activations kept for backward": float(kept),
        "final states and their gradient": (rows + 2.0 * selected) * shape.hidden * how.width,
        "input of the lowest layer": float((rows + entering) * shape.hidden * how.width * bool(entering)),
        "reference states": float(micro.kl_positions * shape.hidden * how.width),
    }


def _losses(shape: Shape, trained: Trained, micro: Micro, setting: Setting) -> dict[str, float]:
    """While the last chunk of logits is alive: everything is kept."""
    parts = _kept(shape, trained, micro, setting.how)
    if setting.accumulate > 1:
        parts["gradients"] = _gradients(trained, setting)
    chunk = min(max(1, CHUNK_ELEMENTS // shape.vocab), max(micro.sft_positions, micro.kl_positions))
    copies = KL_CHUNKS[setting.direction] if micro.kl else CE_CHUNKS
    parts["chunk of logits"] = float(copies * chunk * shape.vocab * SINGLE)
    parts["gradient of the head"] = (1.0 + len(_terms(micro))) * _head(shape, trained, setting)
    return parts


def _backward(shape: Shape, trained: Trained, micro: Micro, setting: Setting) -> dict[str, float]:
    """When the backward pass begins: gradients of the head, of one layer's states, and all that is kept."""
    how = setting.how
    parts = _kept(shape, trained, micro, how)
    first = 1.0 if setting.accumulate > 1 else 1.0 / shape.layers
    parts["gradients"] = first * _gradients(trained, setting)
    parts["gradient of the head"] = (2.0 + len(_terms(micro))) * _head(shape, trained, setting)
    widest = 3 * shape.intermediate + 2 * shape.hidden
    parts["gradients of hidden states"] = float(micro.tokens(how.packed) * widest * how.width)
    return parts


def _update(shape: Shape, trained: Trained, setting: Setting, device: Device) -> dict[str, float]:
    """While the optimizer moves the parameters, or the norm of what it did is measured."""
    parts = {"gradients": _gradients(trained, setting)}
    temporary = 0.0 if device.cpu else _gradients(trained, setting)  # all parameters at once on a GPU
    largest = shape.vocab * shape.hidden if trained.embeddings else shape.hidden * shape.intermediate
    norm = float(largest * NORM_DOUBLES) if trained.full else 0.0
    parts["optimizer and norm, temporary"] = max(temporary, norm)
    return parts


def _terms(micro: Micro) -> tuple[str, ...]:
    return ("sft", "kl") if micro.kl else ("sft",)


def _head(shape: Shape, trained: Trained, setting: Setting) -> float:
    """Bytes of one gradient of the head."""
    trains = trained.full and trained.embeddings
    return float(shape.vocab * shape.hidden * setting.how.width * trains)
