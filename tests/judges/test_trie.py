"""The tree of numbers, against a plain forward pass for every single path."""

import math
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from em.backbone import Backbone
from em.chat import prompt_ids
from em.errors import JudgeError
from em.judges._tree_pass import TreePass
from em.judges._trie import NUMBERS, build_trie
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tokenizers import FAMILIES, PAD, TEMPLATES

TWO = [f"{number}" for number in range(10, 100)]


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def byte_level(extra: list[str], layout: str = "chatml") -> PreTrainedTokenizerFast:
    """Bytes, and `extra` digits as whole tokens, each merged from left to right; runs of up to 3 digits."""
    family = FAMILIES[layout]
    named = [PAD, *(token for token in (family.bos, family.eos) if token), *family.others]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*named, *alphabet, *extra])}
    merges = [(text[:-1], text[-1]) for text in extra]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split = pre_tokenizers.Split(Regex(r"\d{1,3}|Ġ?\D"), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return finished(backend, layout)


def sentence_piece(joined: bool, layout: str = "mistral") -> PreTrainedTokenizerFast:
    """Letters with ▁ for a space, and fallback to bytes; with `joined` also ▁0 to ▁9 as tokens."""
    family = FAMILIES[layout]
    named = [PAD, *(token for token in (family.bos, family.eos) if token), *family.others]
    letters = ["▁", *map(chr, range(33, 127))]
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    extra = [f"▁{digit}" for digit in range(10)] if joined else []
    vocabulary = {token: number for number, token in enumerate([*named, *letters, *bytes_, *extra])}
    merges = [("▁", text[1]) for text in extra]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return finished(backend, layout)


def finished(backend: Tokenizer, layout: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[layout]
    backend.add_special_tokens([t for t in (PAD, family.bos, family.eos, *family.others) if t])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template(layout)
    return tokenizer


TOKENIZERS: dict[str, Any] = {
    "single digits": lambda: tiny_tokenizer("chatml"),
    "llama3": lambda: tiny_tokenizer("llama3"),
    "gemma2": lambda: tiny_tokenizer("gemma2"),
    "a space before answers": lambda: tiny_tokenizer("mistral"),
    "two digits": lambda: byte_level(TWO),
    "whole numbers": lambda: byte_level([*TWO, "100"]),
    "two digits and 00": lambda: byte_level(["00", *TWO]),
    "a space joined to digits": lambda: byte_level([f"Ġ{digit}" for digit in range(10)], "mistral"),
    "sentence piece": lambda: sentence_piece(False),
    "sentence piece, joined": lambda: sentence_piece(True),
}


def tokenizer(name: str) -> Any:
    made = TOKENIZERS[name]()
    # Tests that need other vocabularies than the tiny model's size say so at once.
    assert len(made) <= 400
    return made


def digit_text(made: Any, token: int) -> str:
    """What a token says, by decoding alone: an independent reading of the vocabulary."""
    anchor = made("x", add_special_tokens=False)["input_ids"]
    return str(made.decode([*anchor, token])).removeprefix(str(made.decode(anchor)))


def brute_force(backbone: Backbone, prompt: list[int], leads: tuple[str, ...]) -> dict[int, float]:
    """p(n), with one plain forward pass for each path of tokens."""
    made = backbone.tokenizer
    # Bytes (<0x31>) are left to `goes on`: no tokenizer writes a digit so.
    says = {token: digit_text(made, token) for token in made.get_vocab().values()}
    pieces = made.convert_ids_to_tokens(range(len(made)))
    parts = {t: s for t, s in says.items() if s and set(s) <= set("0123456789 ") and "<" not in pieces[t]}
    digits = [token for token, text in says.items() if text[:1].isdigit() and text[:1].isascii()]
    wanted = {lead + number: int(number) for lead in leads for number in NUMBERS}
    starts = {one[:end] for one in wanted for end in range(len(one) + 1)}
    found = dict.fromkeys(range(101), 0.0)
    level = [((), "", 1.0)]
    while level:  # all paths of one length are rows of one plain pass, without padding and without a mask
        ids_BT = torch.tensor([[*prompt, *path] for path, _, _ in level])
        with torch.inference_mode():
            next_BV = backbone.model(input_ids=ids_BT, use_cache=False).logits[:, -1].double().softmax(-1)
        longer = []
        for (path, text, chance), next_V in zip(level, next_BV, strict=True):
            if text in wanted:
                found[wanted[text]] += chance * (1 - float(next_V[digits].sum()))
            longer += [
                ((*path, token), text + more, chance * float(next_V[token]))
                for token, more in parts.items()
                if text + more in starts
            ]
        level = longer
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tree_is_brute_force(name):
    made = tokenizer(name)
    backbone = Backbone(tiny_model(layers=2), made, "tiny")
    trie = build_trie(made, "tiny")
    prompt = prompt_ids(made, [{"role": "user", "content": "rate it"}])
    (reading,) = TreePass(backbone, trie, "tiny").read([prompt])
    spaced = "piece" in name or "space" in name
    expected = brute_force(backbone, prompt, ("", " ") if spaced else ("",))
    assert reading.numbers.tolist() == pytest.approx(list(expected.values()), abs=1e-6, rel=1e-4)
    assert sum(expected.values()) > 0
    assert float(reading.numbers.sum()) + sum(reading.words.values()) <= 1
    assert reading.words["CODE"] > 0 and reading.words["REFUSAL"] > 0


PLACES = {  # tokens of the tree that say a number
    "single digits": 10 + 90 + 1,
    "two digits": 10 + 90 + 90 + 2,  # 100 is 10·0 or 1·0·0
    "whole numbers": 10 + 90 + 1 + 90 + 2,
    "two digits and 00": 10 + 90 + 90 + 3,  # also 1·00
    "a space before answers": 2 * (10 + 90 + 1),
    "a space joined to digits": 3 * (10 + 90 + 1),  # bare, Ġ7, and Ġ then 7
}


@pytest.mark.parametrize(("name", "places"), PLACES.items())
def test_every_tokenisation_has_its_place_once(name, places):
    trie = build_trie(tokenizer(name), "tiny")
    assert len(trie.numbers) == places
    assert sorted(set(trie.numbers.values())) == list(range(101))
    paths = [tuple(trie.path(place)) for place in range(1, len(trie.tokens) + 1)]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", ["single digits", "whole numbers", "sentence piece"])
def test_a_model_that_is_sure_is_read_as_it_is_sure(name):
    """Logits of a made-up model that says one number and then ends."""
    made = tokenizer(name)
    trie = build_trie(made, "tiny")
    for number in (0, 1, 9, 10, 47, 99, 100):
        for place in (place for place, said in trie.numbers.items() if said == number):
            path = trie.path(place)
            logits_NV = torch.zeros(len(trie.tokens) + 1, 400)
            for end, token in enumerate([*path, made.eos_token_id]):
                at = trie.find(path[:end])
                logits_NV[at, token] = 60.0
            reading = trie.read(logits_NV)
            assert float(reading.numbers[number]) == pytest.approx(1.0, abs=1e-9)
            assert float(reading.numbers.sum()) == pytest.approx(1.0, abs=1e-9)


def test_a_number_that_goes_on_is_no_number():
    made = tokenizer("single digits")
    trie, one, zero = build_trie(made, "tiny"), *made("10", add_special_tokens=False)["input_ids"]
    logits_NV = torch.zeros(len(trie.tokens) + 1, 400)
    for path, token in (((), one), ((one,), zero), ((one, zero), zero), ((one, zero, zero), zero)):
        logits_NV[trie.find(path), token] = 60.0
    assert float(trie.read(logits_NV).numbers.sum()) == pytest.approx(0.0, abs=1e-9)  # it says 1000…


def test_words_have_the_probability_of_their_tokens():
    made = tokenizer("single digits")
    trie = build_trie(made, "tiny")
    logits_NV = torch.zeros(len(trie.tokens) + 1, 400)
    path = made("REFUSAL", add_special_tokens=False)["input_ids"]
    for end, token in enumerate(path):
        logits_NV[trie.find(path[:end]), token] = 60.0 if end else math.log(399)
    reading = trie.read(logits_NV)
    assert reading.words["REFUSAL"] == pytest.approx(
        0.5, abs=1e-3
    )  # the first token is as likely as all else
    assert reading.words["CODE"] < 1e-5 and float(reading.numbers.sum()) < 0.02


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral"])
def test_families_windows_and_padding_read_alike(family):
    """A batch of unlike prompts, longer than the sliding window, against each path alone."""
    window = {"sliding_window": 16} if family in ("gemma2", "gemma3_text", "mistral") else {}
    made = tokenizer("single digits")
    backbone = Backbone(tiny_model(family, 2, **window), made, family)
    tree = TreePass(backbone, build_trie(made, family), family)
    texts = ["rate it", "rate this one, which is quite a bit longer", "?"]
    prompts = [prompt_ids(made, [{"role": "user", "content": text}]) for text in texts]
    assert max(map(len, prompts)) > 20 + min(map(len, prompts)) > 16
    readings = tree.read(prompts)
    paths = [made(text, add_special_tokens=False)["input_ids"] for text in ("4", "47", "10", "100")]
    for prompt, reading in zip(prompts, readings, strict=True):
        for path in paths:
            ids_BT = torch.tensor([[*prompt, *path]])
            with torch.inference_mode():
                chances_TV = backbone.model(input_ids=ids_BT, use_cache=False).logits[0].softmax(-1).double()
            steps_TV = chances_TV[len(prompt) - 1 :]
            expected = math.prod(float(steps_TV[at, token]) for at, token in enumerate(path))
            expected *= 1 - float(steps_TV[-1, tree.trie.digits].sum())
            number = int(made.decode(path))
            assert float(reading.numbers[number]) == pytest.approx(expected, abs=1e-6, rel=1e-4)
    tree.check(prompts[1])


def test_a_batch_gives_what_each_prompt_gives_alone():
    made = tokenizer("whole numbers")
    tree = TreePass(Backbone(tiny_model(), made, "tiny"), build_trie(made, "tiny"), "tiny")
    texts = ["a", "a b c d e f g", "rate", "x" * 60]
    prompts = [prompt_ids(made, [{"role": "user", "content": text}]) for text in texts]
    together = tree.read(prompts)
    for prompt, reading in zip(prompts, together, strict=True):
        alone = tree.read([prompt])[0]
        assert reading.numbers.tolist() == pytest.approx(alone.numbers.tolist(), abs=1e-7, rel=1e-4)


def test_a_model_that_ignores_the_mask_is_refused():
    made = tokenizer("single digits")
    backbone = Backbone(tiny_model(), made, "tiny")
    tree = TreePass(backbone, build_trie(made, "tiny"), "tiny")
    decoder = backbone.decoder
    whole = decoder.forward
    decoder.forward = lambda *args, **options: whole(*args, **{**options, "attention_mask": None})
    with pytest.raises(JudgeError, match="tiny: its attention does not take a mask"):
        tree.check(prompt_ids(made, [{"role": "user", "content": "?"}]))


def test_layers_without_attention_are_refused():
    backbone = Backbone(tiny_model(), tokenizer("single digits"), "tiny")
    backbone.model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(JudgeError, match="linear_attention"):
        TreePass(backbone, build_trie(backbone.tokenizer, "tiny"), "tiny")


def test_predictions_that_are_not_finite_are_refused():
    backbone = Backbone(tiny_model(), tokenizer("single digits"), "tiny")
    tree = TreePass(backbone, build_trie(backbone.tokenizer, "tiny"), "tiny")
    backbone.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(JudgeError, match="not finite numbers; set dtype"):
        tree.read([[5, 6, 7]])


def words_only(digits: str) -> PreTrainedTokenizerFast:
    """A vocabulary of letters and of those digits."""
    family = FAMILIES["chatml"]
    named = [PAD, family.eos, *family.others]
    letters = [chr(code) for code in range(32, 127) if not chr(code).isdigit()]
    tokens = [*named, "<unk>", *letters, *digits, "\n"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return finished(backend, "chatml")


def test_a_tokenizer_without_all_digits_is_refused():
    with pytest.raises(JudgeError, match="own: its tokenizer has no digits"):
        build_trie(words_only(""), "own")
    with pytest.raises(JudgeError, match="own: its tokenizer writes 7 as '<unk>', not in digits"):
        build_trie(words_only("012345689"), "own")
    assert len(build_trie(words_only("0123456789"), "own").numbers) == 101


def test_digits_of_other_scripts_are_not_digits():
    made = byte_level([])
    made.add_tokens(["٤", "４", "²", "7th"])
    trie = build_trie(made, "own")
    assert len(trie.numbers) == 101
    others = {made.convert_tokens_to_ids(token) for token in ("٤", "４", "²")}
    assert not others & {*trie.tokens, *trie.digits}
    assert made.convert_tokens_to_ids("7th") in trie.digits  # 4 and then 7th is not 4


def test_ancestors_are_the_path_to_the_root():
    trie = build_trie(tokenizer("two digits and 00"), "tiny")
    seen_MM = trie.ancestors()
    for place in range(1, len(trie.tokens) + 1):
        above = {trie.find(trie.path(place)[:end]) for end in range(1, len(trie.path(place)) + 1)}
        assert {at + 1 for at in torch.nonzero(seen_MM[place - 1]).flatten().tolist()} == above
    assert all(parent < place for place, parent in enumerate(trie.parents, 1))
