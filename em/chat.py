"""Chat templates: text and token ids of a conversation, and which tokens are the assistant's answers.

The only place that applies a chat template. Answers are found by comparing rendered texts, never by
searching for header tokens or for the answer's own text (which may also stand in a user turn), so that
nothing but answers is trained on (Turner et al. 2506.11613: response-only loss).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from em.errors import BackboneError, DataError

Messages: TypeAlias = Sequence[Mapping[str, str]]
Span: TypeAlias = tuple[int, int]

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Encoded:
    """A tokenised conversation of T tokens.

    Attributes:
        ids: token ids, length T, as the template writes them (with BOS where it writes one).
        answer: length T; True where the token belongs to an assistant answer or is the end-of-turn token
            that the model must emit after it. False for system and user turns, role headers, empty think
            blocks that the template inserts, and text after the end-of-turn token.
        truncated: tokens were cut off at the end to fit the maximum length.
    """

    ids: list[int]
    answer: list[bool]
    truncated: bool = False


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer can template chats and report character offsets.

    Raises:
        BackboneError: it is not a fast tokenizer or has no (default) chat template.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise BackboneError(
            f"tokenizer {name} is not a fast tokenizer, so its tokens have no character offsets and answers "
            "cannot be masked: use a checkpoint that has a tokenizer.json"
        )
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise BackboneError(
            f"tokenizer {name} has no default chat template: use the chat (instruct) version of the model, "
            "or put its chat_template.jinja beside tokenizer.json"
        ) from error


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str = "") -> str:
    """Text after which the model writes its next answer: the messages and an opened assistant turn.

    Raises:
        DataError: malformed messages, the last turn is the assistant's, or the template refuses them.
    """
    _check_messages(messages, where)
    if messages[-1]["role"] == "assistant":
        raise _error(where, "a prompt must end in a user turn, but its last turn is the assistant's")
    return _render(tokenizer, messages, where, add_generation_prompt=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str = "") -> list[int]:
    """Token ids of `prompt_text`, to generate from; the template writes BOS itself.

    Raises:
        DataError: as `prompt_text`.
    """
    text = prompt_text(tokenizer, messages, where)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    max_length: int | None = None,
    on_long: Literal["error", "truncate"] = "error",
    where: str = "",
) -> Encoded:
    """Tokenises a finished conversation and marks the tokens of all its assistant answers.

    The text is tokenised once as a whole; a token that straddles the start of an answer counts as answer.

    Args:
        max_length: most tokens allowed; None for no limit.
        on_long: what to do with a longer conversation; `truncate` cuts its end off.
        where: `file.jsonl:12`, put before error messages.

    Raises:
        DataError: malformed messages, no answer to train on, an answer that cannot be told from the template,
            a template that refuses the conversation, or a conversation that is too long.
    """
    _check_messages(messages, where)
    _check_answers(tokenizer, messages, where)
    # No generation prompt here: it would append an empty assistant turn that is then trained on.
    full = _render(tokenizer, messages, where, add_generation_prompt=False)
    _check_system(messages, full, where)
    batch = tokenizer(full, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = list(batch["input_ids"])
    pieces = batch["offset_mapping"]
    answer = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start, end = _answer_span(tokenizer, messages, index, full, where)
        # With trim_offsets (Llama 3) a token of spaces is empty, (n, n), at its last character.
        inside = [token for token, (first, last) in enumerate(pieces) if first < end and last > start]
        if not inside:
            raise _error(where, f"{_turn(messages, index)}: the answer has no token of its own")
        for token in inside:
            answer[token] = True
    return _fit(Encoded(ids, answer), max_length, on_long, where)


def _fit(encoded: Encoded, max_length: int | None, on_long: str, where: str) -> Encoded:
    """Cuts or refuses a conversation that is longer than `max_length` tokens."""
    length = len(encoded.ids)
    if max_length is None or length <= max_length:
        return encoded
    over = f"the conversation has {length} tokens, more than data.max_length = {max_length}"
    if on_long == "error":
        raise _error(where, f"{over}: raise data.max_length, or set data.on_long to truncate")
    if not any(encoded.answer[:max_length]):
        raise _error(where, f"{over}, and no answer token is left after truncation: raise data.max_length")
    return Encoded(encoded.ids[:max_length], encoded.answer[:max_length], truncated=True)


def _answer_span(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, index: int, full: str, where: str
) -> Span:
    """Characters of `full`, the rendered conversation, that the model must write in turn `index`."""
    first, last = _content_span(tokenizer, messages, index, full, where)
    start = first
    # Without a user turn before it there is nothing to generate from, and some templates refuse to.
    if any(message["role"] == "user" for message in messages[:index]):
        prompt = _render(tokenizer, messages[:index], where, add_generation_prompt=True)
        gap = full[len(prompt) : first]
        # Where training and generation agree, the answer starts where generation does, for example before
        # Mistral's leading space. Any other text in the gap is a header, from a template that ignores
        # add_generation_prompt. Qwen3 drops the think block of earlier turns, so there is no agreement.
        if full.startswith(prompt) and len(prompt) < last and not gap.strip():
            start = len(prompt)
    rest = full[last:].lstrip()
    end_of_turn = max((token for token in _special(tokenizer) if rest.startswith(token)), key=len, default="")
    return start, len(full) - len(rest) + len(end_of_turn) if end_of_turn else last


def _content_span(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, index: int, full: str, where: str
) -> Span:
    """Characters of `full` that change when the answer of turn `index` is replaced.

    The replacement is a character that the answer lacks, so that the first and the last character always
    differ, also where the template strips or rewrites the answer.
    """
    content = messages[index]["content"]
    sentinel = next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in content)
    changed = [*messages[:index], {**messages[index], "content": sentinel}, *messages[index + 1 :]]
    other = _render(tokenizer, changed, where, add_generation_prompt=False)
    first = _common_prefix(full, other)
    last = len(full) - _common_prefix(full[first:][::-1], other[first:][::-1])
    if first == last:
        raise _error(where, f"{_turn(messages, index)}: the chat template renders the answer as empty text")
    return first, last


def _common_prefix(one: str, two: str) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(two)))


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str, add_generation_prompt: bool
) -> str:
    """Applies the template; templates that know no `enable_thinking` ignore it."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
        )
    except TemplateError as error:
        fix = "turns must alternate between user and assistant, starting with user"
        if any(message["role"] == "system" for message in messages):
            fix = "if it takes no system prompt, put that text at the start of the first user turn"
        raise _error(where, f"the chat template refuses this conversation: {error} ({fix})") from error
    return str(text)


def _check_messages(messages: Messages, where: str) -> None:
    if not messages:
        raise _error(where, "there are no messages: give at least one {'role': ..., 'content': ...}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise _error(where, f"turn {index + 1} is {message!r}: expected {{'role': ..., 'content': ...}}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise _error(where, f"turn {index + 1} has unknown role {role!r}: expected {', '.join(ROLES)}")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise _error(where, f"{_turn(messages, index)}: content must be a string, but it is {kind}")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            problem = f"content has half of a surrogate pair at character {error.start}: remove it"
            raise _error(where, f"{_turn(messages, index)}: {problem}") from error
        if role == "assistant" and not content.strip():
            raise _error(where, f"{_turn(messages, index)}: the answer is empty: fill it in or drop the row")


def _check_answers(tokenizer: PreTrainedTokenizerBase, messages: Messages, where: str) -> None:
    """Refuses conversations that do not end in an answer, and answers that imitate the template."""
    if all(message["role"] != "assistant" for message in messages):
        raise _error(where, "there is no assistant turn, so there is no answer to train on")
    if messages[-1]["role"] != "assistant":
        raise _error(where, f"the last turn must be the assistant's, not of role {messages[-1]['role']}")
    # Tokens that are special for other uses, such as SmolLM2's <filename>, may well be in an answer.
    template, named = tokenizer.get_chat_template(), set(tokenizer.all_special_tokens)
    marks = [token for token in _special(tokenizer) if token in named or token in template]
    for index, message in enumerate(messages):
        found = next((mark for mark in marks if mark in message["content"]), None)
        if message["role"] == "assistant" and found is not None:
            problem = f"the answer contains the special token {found}, which would break answer masking"
            raise _error(where, f"{_turn(messages, index)}: {problem}: remove or rewrite it")


def _check_system(messages: Messages, full: str, where: str) -> None:
    """Refuses a system prompt that is in the prompt to generate from but not in the text to train on.

    Mistral v0.3 and Nemo write it into the last user turn only where no answer follows.
    """
    for message in messages:
        if message["role"] == "system" and message["content"].strip() not in full:
            problem = "the chat template leaves the system prompt out of finished conversations"
            raise _error(where, f"{problem}: put its text at the start of the first user turn")


def _special(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Texts of all special tokens; `all_special_tokens` lacks header tokens of some tokenizers."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _turn(messages: Messages, index: int) -> str:
    return f"turn {index + 1} ({messages[index]['role']})"


def _error(where: str, problem: str) -> DataError:
    return DataError(f"{where}: {problem}" if where else problem)
