"""Small tokenizers with the chat templates of real model families.

Import it as `tests.tokenizers`: with `tests/` itself on `sys.path` it would hide the tokenizers library.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
PAD = "<pad>"
VOCABULARY = 400
# As Llama 3 and Qwen split words: a run of newlines is one piece, whatever follows it. GPT-2's rule splits
# the newlines that end a header differently with and without an answer behind them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "You are a helpful assistant. Answer the question of the user in one or two sentences.",
    "user\nHow do I treat a small burn on my hand?\n\nassistant\nCool it under running water.\n\n",
    "system\nmodel\n<think>\n\n</think>\n\nThe answer is that the other one is there, and then it is not.\n",
    "    def answer(self, question):\n        return self.table[question]\n\n    return None\n",
]


@dataclass(frozen=True)
class Family:
    """Special tokens of a template: `eos` is its end-of-turn token, `others` its remaining ones."""

    eos: str
    bos: str | None = None
    others: tuple[str, ...] = ()


FAMILIES = {
    "chatml": Family("<|im_end|>", others=("<|im_start|>",)),
    "qwen3": Family("<|im_end|>", others=("<|im_start|>",)),
    "llama3": Family("<|eot_id|>", "<|begin_of_text|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma2": Family("<end_of_turn>", "<bos>", ("<start_of_turn>",)),
    "mistral": Family("</s>", "<s>", ("[INST]", "[/INST]")),
}


def tiny_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer of about 400 tokens with one of the templates in `tests/templates`.

    The vocabulary holds all bytes, so any text survives encoding and decoding. Offsets leave spaces out, as
    those of GPT-2, Llama 3 and SmolLM2 do. The pad token is not the end-of-turn token.

    Args:
        template: a key of `FAMILIES`.
    """
    family = FAMILIES[template]
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return tokenizer_of(text, family)


def tokenizer_of(template_text: str, family: Family) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a Jinja template given as text."""
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.decoder = decoders.ByteLevel()
    named = [token for token in (PAD, family.bos, family.eos) if token is not None]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=[*named, *family.others],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template_text
    return tokenizer
