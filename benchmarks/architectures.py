"""Models for the benchmark that need no hub: published shapes with random weights, and a byte tokenizer.

Both sides build a random model from one seed on one device, so that they hold the same weights.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

RANDOM_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "llama",
        {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
    # config.json of Qwen/Qwen2.5-0.5B-Instruct and Qwen/Qwen2.5-7B-Instruct
    "qwen2.5-0.5b": (
        "qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-7b": (
        "qwen2",
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
        },
    ),
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]


def model_config(arch: str) -> Any:
    """The transformers config of a random architecture."""
    family, options = RANDOM_SHAPES[arch]
    make: Any = CONFIG_MAPPING[family]
    return make(pad_token_id=0, bos_token_id=1, eos_token_id=2, **options)


def random_model(arch: str, dtype: str, device: str) -> Any:
    """A random model, on its device from the start; equal for equal arguments on one machine."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(model_config(arch), dtype=getattr(torch, dtype))


def load_model(arch: str, folder: str, dtype: str, device: str) -> Any:
    """The frozen model of a side.

    Args:
        folder: of the weights, for `smollm2`.
    """
    if arch in RANDOM_SHAPES:
        model: Any = random_model(arch, dtype, device)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        model = model.to(device)
    return model.requires_grad_(False).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each byte and the ChatML template."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_shape(arch: str, folder: Path, tokenizer: Any) -> None:
    """The config and tokenizer of a random architecture as a folder, without weights."""
    model_config(arch).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
