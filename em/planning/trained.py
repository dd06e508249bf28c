"""What an intervention trains, in numbers: parameters, modules, layers; and where gradients flow."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from em.config.schema import Component, Config
from em.errors import ConfigError
from em.interventions.full_finetune import FullFinetune
from em.interventions.lora import ALL_MODULES, Lora
from em.interventions.steering_vector import SteeringVector
from em.planning.shapes import Shape

KINDS = {"lora": Lora, "steering_vector": SteeringVector, "full_finetune": FullFinetune}
QKV, MLP_IN = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Trained:
    """The trained part of a model.

    Args:
        kind: of the intervention.
        parameters: how many are trained.
        lowest: the lowest layer that anything changes, fixed interventions of training included.
        rank: of a LoRA.
        modules: adapted linear modules, by layer.
        dropout: whether a LoRA drops inputs.
        embeddings: whether a full finetune trains embeddings and head.
        vector: layer and point of a steering vector.
    """

    kind: str
    parameters: int
    lowest: int = 0
    rank: int = 0
    modules: dict[int, tuple[str, ...]] = field(default_factory=dict)
    dropout: bool = False
    embeddings: bool = False
    vector: tuple[int, str] | None = None

    @property
    def full(self) -> bool:
        return self.kind == "full_finetune"

    def flow(self, layer: int) -> "Flow":
        """Where gradients flow in a layer."""
        adapted = self.modules.get(layer, ())
        first = min(self.modules, default=0) if self.vector is None else self.vector[0]
        entering = layer > first or (self.full and self.embeddings)
        point = self.vector[1] if self.vector is not None and self.vector[0] == layer else ""
        return Flow(entering, adapted, self.full, point)


@dataclass(frozen=True)
class Flow:
    """Which tensors of a layer have a gradient.

    Args:
        entering: the layer's input has one, because something below is trained.
        adapted: modules with a LoRA.
        full: the layer's own weights are trained.
        vector: the output of this layer that a steering vector is added to, or nothing.
    """

    entering: bool
    adapted: tuple[str, ...]
    full: bool
    vector: str = ""

    def output(self, module: str) -> bool:
        """Whether the output of a linear module has a gradient."""
        return self.full or module in self.adapted or self.input(module)

    def input(self, module: str) -> bool:
        """Whether its input has one."""
        if module in QKV:
            return self.entering or self.full
        if module == "o_proj":
            return self.attention
        return self.middle if module in MLP_IN else any(self.output(name) for name in MLP_IN)

    @property
    def attention(self) -> bool:
        """Whether attention has a gradient."""
        return any(self.output(name) for name in QKV)

    @property
    def middle(self) -> bool:
        """Whether the residual stream between attention and MLP has one."""
        return self.entering or self.added("attention")

    def added(self, point: str) -> bool:
        """Whether what `attention` or `mlp` adds to the residual stream has one."""
        return self.vector == point or self.output("o_proj" if point == "attention" else "down_proj")


def trained_of(config: Config, shape: Shape) -> Trained:
    """What the intervention of a configuration trains.

    Raises:
        ConfigError: a kind whose memory is not known, or modules and layers that the model does not have.
    """
    given = config.intervention
    kind = str(given.get("kind"))
    if kind not in KINDS:
        raise ConfigError(
            f"intervention: the memory of {given.get('kind') or given.get('_target_')} is not known here; "
            f"plan one of {', '.join(KINDS)}"
        )
    options = _options(given, KINDS[kind])
    lowest = min([shape.layers, *(_lowest_fixed(one, shape) for one in config.during_training)])
    if kind == "steering_vector":
        layer = int(options["layer"])
        return Trained(kind, shape.hidden, min(lowest, layer), vector=(layer, str(options["point"])))
    if kind == "full_finetune":
        count = shape.parameters
        if not options["embeddings"]:
            count -= shape.outer_parameters - shape.hidden
        return Trained(kind, count, embeddings=bool(options["embeddings"]))
    return _lora(options, shape, lowest)


def _lora(options: dict[str, Any], shape: Shape, lowest: int) -> Trained:
    modules = tuple(options["modules"] or ALL_MODULES)
    unknown = [name for name in modules if name not in shape.linears]
    if unknown:
        raise ConfigError(
            f"intervention.modules: {', '.join(unknown)} is not known here; a layer has "
            f"{', '.join(shape.linears)}"
        )
    layers = range(shape.layers) if options["layers"] is None else sorted(options["layers"])
    rank = int(options["r"])
    if rank < 1 or not layers:
        raise ConfigError(f"intervention: a LoRA of rank {rank} on {len(layers)} layers has nothing to train")
    each = sum(sum(shape.linears[name]) for name in modules)
    return Trained(
        "lora",
        rank * each * len(layers),
        min(lowest, min(layers)),
        rank,
        dict.fromkeys(layers, modules),
        bool(options["dropout"]),
    )


def _options(given: Component, made_by: type) -> dict[str, Any]:
    """The options of a component, with its class's defaults."""
    taken = inspect.signature(made_by).parameters
    return {name: given.get(name, parameter.default) for name, parameter in taken.items()}


def _lowest_fixed(component: Component, shape: Shape) -> int:
    layers = component.get("layers", "own")
    if isinstance(layers, int):
        return layers
    return min(layers) if isinstance(layers, list) and layers else 0
