"""Which tensors the forward pass keeps for the backward pass, and their bytes.

Read off the modules of transformers and `em.interventions._lora_linear`, and held against what autograd
really saves in tests/planning/test_kept.py. d hidden, i intermediate, q = heads × head_dim, k the same of the
key heads, r the rank. A frozen layer that gradients pass through keeps, for each token, in 32 bits:
2d + 2 (norms) + 2q + 2k + heads (attention) + 3i (MLP).
"""

from dataclasses import dataclass

from em.planning.shapes import Shape
from em.planning.trained import MLP_IN, QKV, Flow, Trained

SINGLE, INDEX = 4, 8


@dataclass(frozen=True)
class Numbers:
    """How a run computes.

    Args:
        width: bytes of a value in the model's dtype.
        adapter: bytes of an adapter's parameter.
        packed: whether rows run without padding.
        eager: whether attention keeps its weights, T² values for each head.
        checkpointing: whether a layer keeps its input only and is run again.
        cpu: whether it runs on a CPU.
    """

    width: int
    adapter: int
    packed: bool
    eager: bool
    checkpointing: bool
    cpu: bool


def layer_bytes(shape: Shape, trained: Trained, layer: int, how: Numbers, tokens: int, pairs: int) -> int:
    """What one layer keeps for a micro-batch.

    Args:
        tokens: that are run.
        pairs: Σ T² over rows.
    """
    flow = trained.flow(layer)
    each = _norms(shape, flow, how) + _attention(shape, flow, how) + _mlp(shape, flow, how)
    each += sum(_linear(shape, trained, flow, name, how) for name in shape.linears)
    return tokens * each + pairs * shape.heads * _weights(shape, flow, how)


def kept_bytes(shape: Shape, trained: Trained, how: Numbers, tokens: int, pairs: int) -> int:
    """What a whole forward pass keeps.

    With checkpointing: the input of each layer that is run, and all of one layer while it is run again.
    """
    first = trained.lowest
    layers = [layer_bytes(shape, trained, layer, how, tokens, pairs) for layer in range(first, shape.layers)]
    last = _norm(shape, shape.hidden, how, trained.full)
    if trained.full and trained.embeddings:
        last += INDEX
    if how.packed:  # unpacking keeps its source and where it goes; angles differ from token to token
        last += shape.hidden * how.width + INDEX + 2 * shape.head_dim * how.width
    if how.checkpointing:
        inputs = tokens * shape.hidden * how.width * len(layers)
        return inputs + max(layers) + tokens * last
    return sum(layers) + tokens * last


def _norm(shape: Shape, size: int, how: Numbers, trained: bool, heads: int = 1) -> int:
    """Bytes per token of a norm: its input in 32 bits and 1/rms; with a trained weight its result too."""
    result = SINGLE if shape.post_norms else how.width  # Gemma's norms multiply in 32 bits
    return size * (SINGLE + (result if trained else 0)) + heads * SINGLE


def _norms(shape: Shape, flow: Flow, how: Numbers) -> int:
    count = flow.entering + flow.middle
    if shape.post_norms:
        count += flow.added("attention") + flow.added("mlp")
    return count * _norm(shape, shape.hidden, how, flow.full)


def _attention(shape: Shape, flow: Flow, how: Numbers) -> int:
    if not flow.attention:
        return 0
    total = (2 * shape.queries + 2 * shape.keys) * how.width + shape.heads * SINGLE
    if how.eager:  # keys and values are copied for every head; no sums of the softmax
        total = 3 * shape.queries * how.width * _scored(flow)
    if shape.qk_norm:
        for name, heads in (("q_proj", shape.heads), ("k_proj", shape.kv_heads)):
            if flow.output(name):
                total += _norm(shape, heads * shape.head_dim, how, flow.full, heads)
    return total


def _scored(flow: Flow) -> bool:
    return flow.output("q_proj") or flow.output("k_proj")


def _weights(shape: Shape, flow: Flow, how: Numbers) -> int:
    """Bytes of eager attention per head and pair of tokens."""
    if not (how.eager and flow.attention):
        return 0
    if not _scored(flow):
        return how.width
    capped = how.width if shape.family == "gemma2" else 0  # what tanh gave
    return SINGLE + capped + (how.width if how.width < SINGLE else 0)


def _mlp(shape: Shape, flow: Flow, how: Numbers) -> int:
    gate, up = (flow.output(name) for name in MLP_IN)
    # silu keeps its input; the product keeps each side for the other's gradient.
    return shape.intermediate * how.width * (2 * gate + up)


def _linear(shape: Shape, trained: Trained, flow: Flow, name: str, how: Numbers) -> int:
    """What a linear module keeps: its input, where a weight on it is trained, and x·Aᵀ."""
    inputs = shape.linears[name][0]
    adapted = name in flow.adapted
    if adapted and trained.dropout:
        mask = (SINGLE if how.cpu else 1) * flow.input(name)
        return inputs * (SINGLE + mask) + trained.rank * SINGLE
    if not (adapted or flow.full):
        return 0
    total = trained.rank * how.width if adapted else 0
    group = next((names for names in (QKV, MLP_IN) if name in names), (name,))
    sharers = [other for other in group if flow.full or other in flow.adapted]
    if name == "o_proj" and flow.attention and not how.packed and not how.eager:
        return total  # attention keeps it already
    return total + (inputs * how.width if sharers[0] == name else 0)  # one input, kept once
