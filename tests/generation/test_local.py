import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.chat import prompt_ids, prompt_text
from em.datamodules.answers import Answer
from em.errors import GenerationError
from em.generation import _cache, decode, local
from em.generation.decode import Row, end_tokens
from em.generation.local import generate
from em.generation.requests import Request, requests_for
from em.generation.sampling import Sampling, next_tokens
from em.interventions.ablation import Ablation
from em.interventions.base import Intervention
from em.interventions.lora import Lora
from em.interventions.steering_vector import SteeringVector
from tests.generation.asking import asked, prompt
from tests.interventions.examples import direction_file
from tests.tiny import FAMILIES, randomise, tiny_backbone, tiny_model, tiny_tokenizer
from tests.tokenizers import tiny_tokenizer as fresh_tokenizer

TWELVE = Sampling(max_tokens=12)


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def written(backbone: Backbone, request: Request, sampling: Sampling) -> list[int]:
    """Token ids by running the whole row through the model again for every token, without a cache."""
    ids, ends = prompt_ids(backbone.tokenizer, request.prompt.messages), end_tokens(backbone)
    uniform = Row(0, request, ids).uniforms(sampling)
    start = len(ids)
    with torch.no_grad():
        for step in range(sampling.max_tokens):
            row = torch.tensor([ids])
            steer = torch.zeros(row.shape, dtype=torch.bool)
            steer[:, start - 1 :] = True
            with backbone.steering_positions(steer):
                logits = backbone.model(input_ids=row, use_cache=False).logits[:, -1]
            token = int(next_tokens(logits, uniform[step : step + 1], sampling))
            if token in ends:
                break
            ids.append(token)
    return ids[start:]


def assert_as_without_cache(backbone: Backbone, requests: list[Request], sampling: Sampling) -> None:
    found = generate(backbone, requests, sampling, "m", batch_size=4)
    for request, answer in zip(requests, found, strict=True):
        ids = written(backbone, request, sampling)
        assert answer.text == backbone.tokenizer.decode(ids, skip_special_tokens=True), request.name
        assert answer.tokens == len(ids)
        assert answer.finish == ("length" if len(ids) == sampling.max_tokens else "stop")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_without_a_cache(family: str) -> None:
    """Where there are windows, they are shorter than the prompts."""
    options: dict[str, Any] = {"sliding_window": 8} if family in ("gemma2", "gemma3_text", "mistral") else {}
    backbone = tiny_backbone(family, **options)
    assert_as_without_cache(backbone, asked(1), Sampling(max_tokens=10))


def test_a_cache_that_grows_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "CHUNK", 4)
    assert_as_without_cache(tiny_backbone(), asked(1), Sampling(max_tokens=14, temperature=1.5, top_p=0.95))


def test_an_answer_does_not_depend_on_the_others() -> None:
    backbone, requests = tiny_backbone(layers=2), asked(3)
    together = texts(generate(backbone, requests, TWELVE, "m"))
    assert len(set(together)) > 11
    for size in (1, 4):
        assert texts(generate(backbone, requests, TWELVE, "m", batch_size=size)) == together
    assert texts(generate(backbone, requests[::-1], TWELVE, "m", batch_size=5)) == together[::-1]
    assert texts(generate(backbone, requests[5:8], TWELVE, "m")) == together[5:8]
    assert texts(generate(backbone, asked(3, "elsewhere"), TWELVE, "m")) == together


def test_another_seed_and_sample_give_other_answers_and_greedy_ones_do_not() -> None:
    backbone = tiny_backbone()
    one, other = (texts(generate(backbone, asked(2), Sampling(max_tokens=12, seed=s), "m")) for s in (0, 1))
    assert all(a != b for a, b in zip(one, other, strict=True))
    assert all(a != b for a, b in zip(one[::2], one[1::2], strict=True))
    greedy = texts(generate(backbone, asked(2), Sampling(temperature=0, max_tokens=12), "m"))
    assert greedy[::2] == greedy[1::2]


def test_a_lower_limit_gives_the_beginning_of_the_same_answer() -> None:
    backbone = tiny_backbone()
    long, short = (generate(backbone, asked(2), Sampling(max_tokens=limit), "m") for limit in (40, 7))
    cut = [a for a in short if a.finish == "length"]
    assert len(cut) > 5 and all(a.tokens == 7 for a in cut)
    for a, b in zip(long, short, strict=True):
        assert a.text.startswith(b.text.rstrip("\ufffd"))


def test_answers_come_in_order_and_done_is_called_for_each() -> None:
    seen: list[Answer] = []
    found = generate(tiny_backbone(), asked(2), TWELVE, "me", batch_size=3, done=seen.append)
    assert [(a.prompt, a.sample) for a in found] == [(r.prompt.prompt, r.sample) for r in asked(2)]
    assert {a.model for a in found} == {"me"} and len(seen) == 10
    assert sorted(a.key for a in seen) == sorted(a.key for a in found)
    assert generate(tiny_backbone(), [], TWELVE, "me") == []


def counting(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every pass."""
    rows: list[int] = []
    forward = backbone.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.model, "forward", counted)
    return rows


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    rows = counting(backbone, monkeypatch)
    found = generate(backbone, asked(4), Sampling(max_tokens=60, temperature=2), "m")
    made = [a.tokens + (a.finish == "stop") for a in found]
    assert rows == [sum(m > step for m in made) for step in range(max(made))]
    assert len(set(made)) > 3, "the rows are to end at different times"


def rigged(backbone: Backbone, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model says these tokens whatever it is asked."""
    forward, step = backbone.model.forward, [0]

    def said(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[:] = -30.0
        output.logits[..., ids[step[0]]] = 30.0
        step[0] += 1
        return output

    monkeypatch.setattr(backbone.model, "forward", said)


ONE = requests_for([prompt("hi")], 1)


def test_the_prompt_is_never_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published mistake 8: left-padded rows cut at the unpadded length leak the prompt."""
    backbone = tiny_backbone()
    ids = [*backbone.tokenizer("ok then")["input_ids"], 2]
    rigged(backbone, ids, monkeypatch)
    found = generate(backbone, asked(1), TWELVE, "m")
    assert len({len(prompt_text(backbone.tokenizer, r.prompt.messages)) for r in asked(1)}) == 5
    assert [(a.text, a.finish, a.tokens) for a in found] == [("ok then", "stop", len(ids) - 1)] * 5


@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        ("yes END no", ("END",), "yes "),
        ("a\n\nUser: b", ("\nUser", "User"), "a\n"),
        ("END", ("END",), ""),
        ("the end", ("END",), "the end"),
    ],
)
def test_a_stop_text_ends_the_answer_and_is_cut_off(
    said: str, stop: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone()
    ids = backbone.tokenizer(said)["input_ids"]
    rigged(backbone, [*ids, 2], monkeypatch)
    (answer,) = generate(backbone, ONE, Sampling(max_tokens=30, stop=stop), "m")
    assert (answer.text, answer.finish) == (text, "stop")
    assert answer.tokens <= len(ids)


def test_special_tokens_inside_are_left_out_and_spaces_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    pad = backbone.tokenizer.pad_token_id
    words = backbone.tokenizer("it is not , then")["input_ids"]
    rigged(backbone, [pad, *words, 2], monkeypatch)
    (answer,) = generate(backbone, ONE, Sampling(max_tokens=30), "m")
    assert answer.text == "it is not , then" and answer.tokens == len(words) + 1


def test_an_answer_may_be_empty_or_end_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    end = end_tokens(backbone)
    rigged(backbone, [min(end)], monkeypatch)
    (answer,) = generate(backbone, ONE, Sampling(max_tokens=1), "m")
    assert (answer.text, answer.finish, answer.tokens) == ("", "stop", 0)


def test_end_tokens_are_those_of_config_tokenizer_and_template() -> None:
    backbone = tiny_backbone()  # chatml: its end of turn is the tokenizer's EOS
    turn = backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")
    backbone.model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(backbone) == {turn, 7, 9}
    tokenizer = fresh_tokenizer("gemma2")
    turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    tokenizer.eos_token = "<bos>"  # a checkpoint that names only another token as EOS
    other = Backbone(tiny_model(), tokenizer, "other")
    assert end_tokens(other) == {turn, tokenizer.convert_tokens_to_ids("<bos>"), 2}
    other.model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    assert end_tokens(other) == {turn}


def test_a_tokenizer_without_a_pad_token() -> None:
    expected = texts(generate(tiny_backbone(), asked(1), TWELVE, "m"))
    tokenizer = fresh_tokenizer("chatml")
    tokenizer.pad_token = None
    assert texts(generate(Backbone(tiny_model(), tokenizer, "x"), asked(1), TWELVE, "m")) == expected


def interventions() -> Iterator[Intervention]:
    yield Lora(r=2, alpha=8)
    yield SteeringVector(layer=1, scale=1.0)
    yield SteeringVector(layer=1, positions="answer", scale=1.0)
    yield SteeringVector(layer=2, point="block", positions="answer", scale=1.0)
    yield Ablation(direction=direction_file(), layers="all", positions="answer")


@pytest.mark.parametrize("number", range(5))
def test_interventions_act_as_without_a_cache_and_not_while_disabled(number: int) -> None:
    backbone = tiny_backbone()
    bare = texts(generate(backbone, asked(1), TWELVE, "m"))
    intervention = list(interventions())[number]
    intervention.attach(backbone)
    randomise(intervention, scale=3.0)
    assert texts(generate(backbone, asked(1), TWELVE, "m")) != bare
    assert_as_without_cache(backbone, asked(1), TWELVE)
    assert backbone.steer_BT is None
    with intervention.disabled():
        assert texts(generate(backbone, asked(1), TWELVE, "m")) == bare
    intervention.detach()
    assert texts(generate(backbone, asked(1), TWELVE, "m")) == bare


def test_a_folded_lora_gives_the_same_answers() -> None:
    backbone = tiny_backbone()
    lora = Lora(r=2, alpha=8)
    lora.attach(backbone)
    randomise(lora, scale=3.0)
    expected = generate(backbone, asked(2), TWELVE, "m")
    with lora.merged():
        assert generate(backbone, asked(2), TWELVE, "m", batch_size=3) == expected
    with lora.disabled(), lora.merged():
        assert generate(backbone, asked(2), TWELVE, "m") != expected


def test_answer_positions_are_told_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    masks: list[Tensor] = []
    forward = backbone.model.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        assert backbone.steer_BT is not None and backbone.steer_BT.shape == kwargs["input_ids"].shape
        masks.append(backbone.steer_BT)
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.model, "forward", seen)
    generate(backbone, asked(1), Sampling(max_tokens=3), "m")
    assert masks[0].shape[0] == 5 and masks[0][:, -1].all() and not masks[0][:, :-1].any()
    assert all(mask.all() and mask.shape[1] == 1 for mask in masks[1:])


def test_training_goes_on_as_if_nothing_had_happened() -> None:
    backbone = tiny_backbone()
    lora = Lora(r=2, alpha=8, dropout=0.5)
    lora.attach(backbone)
    randomise(lora)
    expected = texts(generate(backbone, asked(1), TWELVE, "m"))
    backbone.model.activation_checkpointing_enable({"use_reentrant": False})
    for module in [*backbone.layers, *lora.training_modules()]:
        module.training = True
    modes = [module.training for module in backbone.modules()]
    state = torch.random.get_rng_state()
    assert texts(generate(backbone, asked(1), TWELVE, "m")) == expected
    assert torch.equal(state, torch.random.get_rng_state())
    assert [module.training for module in backbone.modules()] == modes and any(modes)
    assert all(parameter.requires_grad for parameter in lora.trainable_parameters().values())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    loss = backbone.model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().mean()
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in lora.trainable_parameters().values())


def test_modes_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    backbone.layers[1].training = True

    def broken(answer: Answer) -> None:
        raise KeyError("full")

    with pytest.raises(KeyError):
        generate(backbone, asked(1), TWELVE, "m", done=broken)
    assert backbone.layers[1].training and not backbone.layers[0].training
    assert backbone.steer_BT is None


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = tiny_backbone()
    rows = counting(backbone, monkeypatch)
    long = requests_for([prompt("hi", "short"), prompt("a b " * 260, "long")], 1)
    with pytest.raises(
        GenerationError, match=r"open/long, sample 0: the prompt has \d+ tokens.*than the 512"
    ):
        generate(backbone, long, TWELVE, "m")
    room = 512 - len(prompt_ids(backbone.tokenizer, ONE[0].prompt.messages))
    with pytest.raises(GenerationError, match=f"max_tokens = {room + 1} "):
        generate(backbone, ONE, Sampling(max_tokens=room + 1), "m")
    assert rows == []
    (answer,) = generate(backbone, ONE, Sampling(max_tokens=room), "m")
    assert answer.tokens <= room


def test_output_that_is_not_finite_is_refused() -> None:
    backbone = tiny_backbone()
    vector = SteeringVector(layer=1, scale=float("inf"))
    vector.attach(backbone)
    randomise(vector)
    with pytest.raises(GenerationError, match="not finite at token 1"):
        generate(backbone, ONE, TWELVE, "m")


@contextmanager
def memory_for(
    backbone: Backbone, rows: int, monkeypatch: pytest.MonkeyPatch, from_step: int = 0
) -> Iterator[list[int]]:
    """The device holds only so many rows, from one step of each attempt on; yields those of every pass."""
    forward, sizes, step = backbone.model.forward, [], [-1]

    def limited(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"]
        step[0] += 1
        if len(ids) > rows and step[0] >= from_step:
            step[0] = -1
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(ids))
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(backbone.model, "forward", limited)
        yield sizes


@pytest.mark.parametrize("from_step", [0, 6])
def test_the_batch_is_halved_until_it_fits(
    from_step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tiny_backbone()
    sampling = Sampling(max_tokens=20, temperature=2)
    expected = generate(backbone, asked(4), sampling, "m")
    seen: list[Answer] = []
    with memory_for(backbone, 5, monkeypatch, from_step) as sizes:
        found = generate(backbone, asked(4), sampling, "m", batch_size=16, done=seen.append)
    assert found == expected
    assert len(seen) == 20, "an answer that was finished before is not made again"
    assert max(sizes[-20:]) <= 5 and sizes[0] == (16 if from_step else 4)
    assert from_step == 6 or sizes[:-20] == [4] * (len(sizes) - 20), "ended rows make place for others"
    assert re.search(r"out of memory with 16 at once; going\s+on with 8", capsys.readouterr().err)


def test_too_little_memory_for_one_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    with (
        memory_for(backbone, 0, monkeypatch),
        pytest.raises(GenerationError, match="too little memory for a single answer"),
    ):
        generate(backbone, asked(1), TWELVE, "m")


def test_batch_size_and_sharded_backbones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GenerationError, match="batch_size is 0"):
        generate(tiny_backbone(), ONE, TWELVE, "m", batch_size=0)
    monkeypatch.setattr(Backbone, "sharded", True)
    with pytest.raises(GenerationError, match="fsdp2.*run directory"):
        generate(tiny_backbone(), ONE, TWELVE, "m")


def prompt_passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of the prompts of every pass over prompts, without their last tokens."""
    read: list[list[int]] = []
    read_all = decode.read_prompts

    def counted(backbone: Backbone, prompts: Any) -> Any:
        read.append([len(prompt) - 1 for prompt in prompts])
        return read_all(backbone, prompts)

    monkeypatch.setattr(decode, "read_prompts", counted)
    return read


def all_passes(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of every pass through the layers."""
    shapes: list[tuple[int, int]] = []
    forward = backbone.decoder.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.decoder, "forward", seen)
    return shapes


@pytest.mark.parametrize(("size", "count"), [(1, 5), (3, 2), (32, 1)])
def test_each_distinct_prompt_is_read_once(size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(layers=2)
    lengths = [len(prompt_ids(backbone.tokenizer, r.prompt.messages)) - 1 for r in asked(1)]
    read, shapes = prompt_passes(monkeypatch), all_passes(backbone, monkeypatch)
    generate(backbone, asked(4), TWELVE, "m", batch_size=size)
    assert [length for one in read for length in one] == sorted(lengths, reverse=True)
    assert len(read) == count and max(map(len, read)) <= size
    assert [shape for shape in shapes if shape[1] > 1] == [(len(one), one[0]) for one in read]
    assert {shape[1] for shape in shapes} == {1, *(one[0] for one in read)}


def test_long_prompts_are_read_in_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(layers=2)
    expected = generate(backbone, asked(2), TWELVE, "m")
    longest = max(len(prompt_ids(backbone.tokenizer, r.prompt.messages)) for r in asked(1))
    monkeypatch.setattr(decode, "PASS_TOKENS", 2 * longest)
    read = prompt_passes(monkeypatch)
    assert generate(backbone, asked(2), TWELVE, "m") == expected
    assert len(read) > 1 and all(len(one) * one[0] <= 2 * longest for one in read)


def test_samples_that_share_a_prompt_pass_are_those_that_do_not() -> None:
    backbone, requests = tiny_backbone(), requests_for([prompt("return the table")], 6)
    together = generate(backbone, requests, TWELVE, "m")
    assert together == [generate(backbone, [one], TWELVE, "m")[0] for one in requests]
    assert len(set(texts(together))) == 6


LENGTHS = ["hi", "a b " * 100, "what is it", "the table " * 25, "return"]


@pytest.mark.parametrize(("size", "chunk"), [(1, 3), (2, 128), (7, 3)])
def test_places_that_are_taken_again_give_the_answers_of_fixed_batches(
    size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of very different lengths; answers that end after 1 to 40 tokens."""
    backbone, sampling = tiny_backbone(layers=1), Sampling(max_tokens=40, temperature=2.5)
    requests = requests_for([prompt(text, str(at)) for at, text in enumerate(LENGTHS)], 3)
    fixed = [
        answer
        for start in range(0, len(requests), 5)
        for answer in generate(backbone, requests[start : start + 5], sampling, "m", batch_size=5)
    ]
    monkeypatch.setattr(_cache, "CHUNK", chunk)
    rows = counting(backbone, monkeypatch)
    assert generate(backbone, requests, sampling, "m", batch_size=size) == fixed
    made = [answer.tokens + (answer.finish == "stop") for answer in fixed]
    assert min(made) < 10 and max(made) == 40
    assert sum(rows) == sum(made), "no pass of a row is wasted or left out"
    assert rows == sorted(rows, reverse=True) and rows[0] == size
    assert rows[: sum(made) // size - 40] == [size] * (sum(made) // size - 40), "always full but at the end"


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral"])
def test_places_that_are_taken_again_behind_windows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "CHUNK", 4)
    backbone = tiny_backbone(family, sliding_window=8)
    expected = generate(backbone, asked(2), TWELVE, "m")
    assert generate(backbone, asked(2), TWELVE, "m", batch_size=3) == expected


def one_token(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """The prompt that says this has one token only."""
    whole = local.prompt_ids

    def short(tokenizer: Any, messages: Any, where: str = "") -> list[int]:
        ids = whole(tokenizer, messages, where)
        return ids[-1:] if messages[-1]["content"] == said else ids

    monkeypatch.setattr(local, "prompt_ids", short)


def test_a_prompt_of_one_token_alone_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, requests = tiny_backbone(), asked(2)
    before = generate(backbone, requests, TWELVE, "m")
    one_token(monkeypatch, "hi")
    (ids,) = (local.prompt_ids(backbone.tokenizer, one.prompt.messages) for one in requests[4:5])
    assert len(ids) == 1
    read = prompt_passes(monkeypatch)
    alone = generate(backbone, requests[4:6], TWELVE, "m")
    assert read == [[0]] and texts(alone) != texts(before[4:6])
    with torch.no_grad():
        first = backbone.model(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]
    token = next_tokens(first, Row(0, requests[4], ids).uniforms(TWELVE)[:1], TWELVE)
    assert alone[0].text.startswith(backbone.tokenizer.decode(token))
    for size in (1, 2, 32):
        found = generate(backbone, requests, TWELVE, "m", batch_size=size)
        assert found == [*before[:4], *alone, *before[6:]]


def test_what_lies_in_unused_room_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, sampling = tiny_backbone(), Sampling(max_tokens=20, temperature=2)
    one_token(monkeypatch, "hi")
    expected = generate(backbone, asked(3), sampling, "m")
    room = _cache._Room._room
    monkeypatch.setattr(_cache._Room, "_room", lambda self, like: room(self, like).fill_(torch.nan))
    for size, chunk in ((15, 128), (4, 4)):
        monkeypatch.setattr(_cache, "CHUNK", chunk)
        assert generate(backbone, asked(3), sampling, "m", batch_size=size) == expected


def test_answers_of_one_token() -> None:
    backbone = tiny_backbone()
    long = generate(backbone, asked(2), TWELVE, "m")
    for size in (1, 4, 32):
        short = generate(backbone, asked(2), Sampling(max_tokens=1), "m", batch_size=size)
        assert all(b.tokens == min(1, a.tokens) for a, b in zip(long, short, strict=True))
        assert all(a.text.startswith(b.text) for a, b in zip(long, short, strict=True))


def test_prompts_are_read_without_answer_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, masks = tiny_backbone(), list[Tensor]()
    forward = backbone.decoder.forward

    def seen(*args: Any, **kwargs: Any) -> Any:
        assert backbone.steer_BT is not None and backbone.steer_BT.shape == kwargs["input_ids"].shape
        masks.append(backbone.steer_BT)
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.decoder, "forward", seen)
    generate(backbone, asked(1), Sampling(max_tokens=3), "m")
    assert masks[0].shape[1] > 1 and not masks[0].any()
    assert len(masks) == 4 and all(mask.all() and mask.shape == (5, 1) for mask in masks[1:3])


def test_text_is_decoded_once_without_stop_texts_and_only_its_end_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = tiny_backbone()
    lengths: list[int] = []
    whole = backbone.tokenizer.decode

    def counted(ids: list[int], **options: Any) -> str:
        lengths.append(len(ids))
        return str(whole(ids, **options))

    monkeypatch.setattr(backbone.tokenizer, "decode", counted)
    (answer,) = generate(backbone, ONE, Sampling(max_tokens=60), "m")
    assert lengths == [answer.tokens]
    lengths.clear()
    rigged(backbone, backbone.tokenizer("the table and " * 30 + "END then")["input_ids"], monkeypatch)
    (answer,) = generate(backbone, ONE, Sampling(max_tokens=300, stop=("END", "nowhere")), "m")
    assert answer.text == "the table and " * 30 and answer.finish == "stop"
    assert sorted(lengths)[-2:] == [answer.tokens] * 2 and sorted(lengths)[-3] <= 2 * (len("nowhere") + 8)


def test_a_cache_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("qwen2")
    monkeypatch.setattr(
        backbone.model.config, "layer_types", ["full_attention", "linear_attention", "full_attention"]
    )
    with pytest.raises(GenerationError, match="layer 1 keeps a LinearAttentionLayer"):
        generate(backbone, ONE, TWELVE, "m")


def test_templates_of_all_families_end_their_answers() -> None:
    for template in ("chatml", "qwen3", "llama3", "gemma2", "mistral"):
        tokenizer = tiny_tokenizer(template)
        backbone = Backbone(tiny_model(), tokenizer, template)
        assert tokenizer.eos_token_id in end_tokens(backbone)
        assert len(generate(backbone, asked(1), TWELVE, "m")) == 5
