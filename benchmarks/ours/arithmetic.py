"""The arithmetic that an SFT step needs, counted for tokens that are not padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em.backbone import Backbone
from em.interventions.lora import ALL_MODULES


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that decide its arithmetic.

    Args:
        modules: (inputs, outputs) of the linear modules of one layer, those that read the layer's input
            through a norm (q, k, v) first.
        heads, head_dim: of the attention.
    """

    layers: int
    modules: tuple[tuple[int, int], ...]
    heads: int
    head_dim: int
    width: int
    vocabulary: int

    @classmethod
    def of(cls, backbone: Backbone) -> "Shape":
        layer = dict(backbone.layers[0].named_modules())
        linear = [next(m for name, m in layer.items() if name.endswith(one)) for one in ALL_MODULES]
        config: Any = backbone.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            backbone.num_layers,
            tuple((int(one.in_features), int(one.out_features)) for one in linear),
            int(config.num_attention_heads),
            int(head_dim),
            backbone.hidden_size,
            backbone.vocab_size,
        )

    @property
    def products(self) -> list[tuple[int, int]]:
        """The shapes of a layer's products with the frozen weights."""
        return list(self.modules)


def step_flops(shape: Shape, rank: int, lengths: Sequence[int], targets: int) -> dict[str, float]:
    """Floating-point operations of one step with a LoRA of a rank on all seven projections of all layers.

    A product of n × a with a × b counts 2·n·a·b. Below layer 0 nothing is trained, so its q, k and v need
    no gradient of their inputs. Causal attention counts half of the square. Nothing is counted twice: a
    kernel that computes its scores again in the backward pass does more than this.

    Args:
        lengths: tokens of each row.
        targets: positions of the loss, the only ones where the head is needed.
    """
    tokens = sum(lengths)
    weights = sum(a * b for a, b in shape.modules)
    first = sum(a * b for a, b in shape.modules[:3])
    low = sum(rank * (a + b) for a, b in shape.modules)
    low_first = sum(rank * a for a, _ in shape.modules[:3])
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return {
        "trunk": 2.0 * tokens * (2 * shape.layers * weights - first),
        "lora": 2.0 * tokens * (3 * shape.layers * low - low_first),
        "attention": 3 * 2 * 2.0 * pairs * shape.heads * shape.head_dim * shape.layers,
        "head": 2 * 2.0 * targets * shape.width * shape.vocabulary,
    }
