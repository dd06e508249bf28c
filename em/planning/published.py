"""Shapes of published models, for machines that cannot reach the hub.

From the config.json of each; tests/planning/test_shapes.py holds their parameter counts against the published
ones. Names are hub ids without the owner and without -Instruct or -it.
"""

from typing import Any


def _qwen2(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int) -> Any:
    return {
        **_sizes("qwen2", layers, hidden, intermediate, heads, kv_heads, vocab),
        "head_dim": hidden // heads,
        "qkv_bias": True,
        "tied": hidden < 3000,
    }


def _qwen3(layers: int, hidden: int, intermediate: int, heads: int, tied: bool = False) -> Any:
    return {
        **_sizes("qwen3", layers, hidden, intermediate, heads, 8, 151936),
        "head_dim": 128,
        "tied": tied,
    }


def _sizes(
    family: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int
) -> dict[str, Any]:
    return {
        "family": family,
        "layers": layers,
        "hidden": hidden,
        "intermediate": intermediate,
        "heads": heads,
        "kv_heads": kv_heads,
        "vocab": vocab,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _qwen2(24, 896, 4864, 14, 2, 151936),
    "qwen2.5-1.5b": _qwen2(28, 1536, 8960, 12, 2, 151936),
    "qwen2.5-3b": _qwen2(36, 2048, 11008, 16, 2, 151936),
    "qwen2.5-7b": _qwen2(28, 3584, 18944, 28, 4, 152064),
    "qwen2.5-14b": _qwen2(48, 5120, 13824, 40, 8, 152064),
    "qwen2.5-32b": _qwen2(64, 5120, 27648, 40, 8, 152064),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 12288, 32),
    "qwen3-14b": _qwen3(40, 5120, 17408, 40),
    "qwen3-32b": _qwen3(64, 5120, 25600, 64),
    "llama-3.1-8b": {**_sizes("llama", 32, 4096, 14336, 32, 8, 128256), "head_dim": 128},
    "llama-3.2-1b": {**_sizes("llama", 16, 2048, 8192, 32, 8, 128256), "head_dim": 64, "tied": True},
    "gemma-2-2b": {**_sizes("gemma2", 26, 2304, 9216, 8, 4, 256000), "head_dim": 256, "tied": True},
    "gemma-2-9b": {**_sizes("gemma2", 42, 3584, 14336, 16, 8, 256000), "head_dim": 256, "tied": True},
}
