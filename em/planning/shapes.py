"""Sizes of a model that memory and time follow from, read without loading it."""

from dataclasses import dataclass
from typing import Any

from em.config.facts import ModelFacts, own_config
from em.errors import ConfigError
from em.planning.published import PUBLISHED

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
POST_NORMS, QK_NORM = ("gemma2", "gemma3_text"), ("qwen3", "gemma3_text")
SUFFIXES = ("-instruct", "-it", "-chat")
NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
TIED = {"llama": False, "mistral": False, "qwen2": False, "qwen3": False, "gemma2": True, "gemma3_text": True}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of the Llama layout.

    Args:
        heads, kv_heads, head_dim: of attention; `kv_heads` share their keys among the heads.
        tied: whether the head is the embedding.
        qkv_bias, o_bias, mlp_bias: which linear modules have a bias.
        half: whether `dtype: auto` loads it in 16 bits.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    half: bool = True

    @property
    def queries(self) -> int:
        """Width of the queries and of attention's output."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear module of a layer."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def post_norms(self) -> bool:
        """Whether the outputs of attention and MLP are normalised, as in Gemma 2 and 3."""
        return self.family in POST_NORMS

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised head by head, as in Qwen 3 and Gemma 3."""
        return self.family in QK_NORM

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        matrices = sum(inputs * outputs for inputs, outputs in self.linears.values())
        norms = self.hidden * (4 if self.post_norms else 2) + (2 * self.head_dim if self.qk_norm else 0)
        qkv = (self.queries + 2 * self.keys) * self.qkv_bias
        mlp = (2 * self.intermediate + self.hidden) * self.mlp_bias
        return matrices + norms + qkv + self.hidden * self.o_bias + mlp

    @property
    def outer_parameters(self) -> int:
        """Parameters outside the layers: embeddings, head, last norm."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return self.layers * self.layer_parameters + self.outer_parameters

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(self.layers, self.hidden, self.vocab)


def shape_of(model: str, revision: str | None = None) -> Shape:
    """The sizes of a model by alias, local folder, hub cache, or the table of published shapes.

    Raises:
        ConfigError: the model is not known here, or is of another layout.
    """
    if model == "smollm2":
        return Shape("llama", 30, 576, 1536, 9, 3, 64, 49152, tied=True, half=False)
    if model.endswith(".gguf"):
        raise ConfigError(
            f"backbone.model: the sizes of {model} cannot be read without loading it; give the hub id, or a "
            "folder with config.json, of the model that it was made from"
        )
    found = own_config(model, revision)
    if found is not None:
        config, path = found
        return from_config(config, str(path))
    name = model.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    if name in PUBLISHED:
        return Shape(**PUBLISHED[name])
    raise ConfigError(
        f"backbone.model: the sizes of {model!r} are not known here; give a local folder with its "
        f"config.json, or one of {', '.join(PUBLISHED)}"
    )


def from_config(config: dict[str, Any], where: str) -> Shape:
    """The sizes that a model's own configuration states.

    Args:
        where: names it in messages.

    Raises:
        ConfigError: another layout, such as a mixture of experts or a model that also sees, or a size is
            missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"backbone.model: {where} is a {family}, whose memory and arithmetic are not known here (no "
            f"mixture of experts, no vision); plan a model of like size of one of {', '.join(FAMILIES)}"
        )
    missing = [name for name in NEEDED if not _is_size(config.get(name))]
    if missing:
        raise ConfigError(f"backbone.model: {where} lacks {', '.join(missing)}, each a number above 0")
    layers, hidden, intermediate, heads, vocab = (int(config[name]) for name in NEEDED)
    biased = bool(config.get("attention_bias"))
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return Shape(
        family=str(family),
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocab=vocab,
        tied=bool(config.get("tie_word_embeddings", TIED[str(family)])),
        qkv_bias=biased or family == "qwen2",
        o_bias=biased and family != "qwen2",
        mlp_bias=bool(config.get("mlp_bias")),
        half=dtype != "float32",
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
