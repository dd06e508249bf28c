"""Floating-point operations of a training step: one multiplication and one addition are two.

Matrix products and attention only, as torch.utils.flop_counter counts them: all pairs of tokens in attention,
and 2.5 times the forward's in its backward pass.
"""

from dataclasses import dataclass
from statistics import fmean

from em.planning.rows import Micro, Work
from em.planning.shapes import Shape
from em.planning.trained import Trained


@dataclass(frozen=True)
class Flops:
    """Operations of one optimizer step of one process, by part."""

    forward: float  # of the adapted model, above what is run once; without adapters and head
    backward: float  # the same, to hidden states; with the weights' own gradients in a full finetune
    again: float  # layers that checkpointing runs a second time
    adapters: float  # low-rank products, forward and backward
    head: float  # at the positions that count, of both models, with gradients
    reference: float  # layers of the frozen reference, at KL rows
    lower: float  # layers below everything that is trained, run once for both models

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Passes:
    """Which passes a step takes.

    Args:
        packed: rows run without padding.
        checkpointing: layers are run again in the backward pass.
        shared: what lies below the intervention is run once for both models (not under FSDP2).
        stored_reference, stored_lower: states are read from disk instead.
        own_reference: the reference is another checkpoint.
    """

    packed: bool
    checkpointing: bool = False
    shared: bool = True
    stored_reference: bool = False
    stored_lower: bool = False
    own_reference: bool = False


def step_flops(shape: Shape, trained: Trained, work: Work, passes: Passes) -> Flops:
    """Operations of one optimizer step of one process: the mean over the run's micro-batches."""
    each = [micro_flops(shape, trained, micro, passes) for micro in work.typical]
    return Flops(**{name: work.accumulate * fmean(vars(one)[name] for one in each) for name in vars(each[0])})


def micro_flops(shape: Shape, trained: Trained, micro: Micro, passes: Passes) -> Flops:
    """Operations of one micro-batch."""
    tokens, pairs = micro.tokens(passes.packed), micro.pairs(passes.packed)
    kl = micro.tokens(passes.packed, True), micro.pairs(passes.packed, True)
    first = trained.lowest if passes.shared else 0
    one = layer_forward(shape, tokens, pairs)
    adapted = range(first, shape.layers)
    reference = 0.0
    if micro.kl and not passes.stored_reference:
        start = 0 if passes.own_reference else first
        reference = layer_forward(shape, *kl) * (shape.layers - start)
    return Flops(
        forward=one * len(adapted),
        backward=sum(layer_backward(shape, trained, layer, tokens, pairs) for layer in adapted),
        again=one * len(adapted) * passes.checkpointing,
        adapters=sum(_adapters(shape, trained, layer, tokens, passes) for layer in adapted),
        head=_head(shape, trained, micro),
        reference=reference,
        lower=0.0 if passes.stored_lower else one * first,
    )


def layer_forward(shape: Shape, tokens: int, pairs: int) -> float:
    """Operations of one frozen layer."""
    matrices = sum(inputs * outputs for inputs, outputs in shape.linears.values())
    return 2.0 * tokens * matrices + 4.0 * pairs * shape.queries


def layer_backward(shape: Shape, trained: Trained, layer: int, tokens: int, pairs: int) -> float:
    """Operations of its backward pass: only where a gradient is needed."""
    flow = trained.flow(layer)
    total = 10.0 * pairs * shape.queries * flow.attention
    for name, (inputs, outputs) in shape.linears.items():
        total += 2.0 * tokens * inputs * outputs * ((flow.output(name) and flow.input(name)) + flow.full)
    return total


def _adapters(shape: Shape, trained: Trained, layer: int, tokens: int, passes: Passes) -> float:
    flow = trained.flow(layer)
    total = 0.0
    for name in flow.adapted:
        inputs, outputs = shape.linears[name]
        products = (2 + passes.checkpointing) * (inputs + outputs)  # x·Aᵀ·Bᵀ; gradients of A and B
        products += outputs + inputs * flow.input(name)  # gradients of x·Aᵀ and of x
        total += 2.0 * tokens * trained.rank * products
    return total


def _head(shape: Shape, trained: Trained, micro: Micro) -> float:
    one = 2.0 * shape.hidden * shape.vocab
    gradients = 1 + (trained.full and trained.embeddings)
    adapted = (micro.sft_positions + micro.kl_positions) * (1 + gradients)
    return one * (adapted + micro.kl_positions)
