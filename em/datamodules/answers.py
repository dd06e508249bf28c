"""Answers of models to questions: what generation writes, judges read and people exchange, as JSONL."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em.datamodules.raw_rows import file_rows
from em.errors import DataError

Message = dict[str, str]
QUESTION_KEYS = ("question", "prompt")
ANSWER_KEYS = ("answer", "response", "completion")


@dataclass(frozen=True)
class Answer:
    """What one model said to one prompt, once.

    Args:
        messages: the turns before the answer; the last one is the user's.
        text: the answer, exactly as it was given; may be empty.
        question: id of the question, the cluster of all statistics; paraphrases share it.
        prompt: id of the exact prompt (question, or question#2 for its second paraphrase).
        questions: name of the question set.
        sample: number of the sample of this prompt, from 0.
        model: who answered: `reference`, or the name of the run or solution.
        finish: `stop`: the model ended it; `length`: cut off at the limit; `unknown`: from elsewhere.
        tokens: of the answer.
        extra: further keys of a row that was read, kept when it is written again.
    """

    messages: tuple[Message, ...]
    text: str
    question: str = ""
    prompt: str = ""
    questions: str = ""
    sample: int = 0
    model: str = ""
    finish: str = "unknown"
    tokens: int = 0
    extra: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)

    @property
    def key(self) -> str:
        """Identifies the answer: who said what, to which prompt, as which sample."""
        parts = [self.model, self.questions, self.prompt, self.sample, list(self.messages), self.text]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]

    @property
    def asked(self) -> str:
        """The last user turn, which judges are shown as the question."""
        return self.messages[-1]["content"]

    def row(self) -> dict[str, Any]:
        """As one JSON line; `messages` holds the answer too, as in every other file of the project."""
        said = {"role": "assistant", "content": self.text}
        return {
            **self.extra,
            "model": self.model,
            "questions": self.questions,
            "question": self.question,
            "prompt": self.prompt,
            "sample": self.sample,
            "messages": [*self.messages, said],
            "finish": self.finish,
            "tokens": self.tokens,
        }


def read_answers(path: Path | str) -> list[Answer]:
    """Read JSONL (or .jsonl.gz) of answers: our own rows, `messages` that end in the assistant's turn, or
    a `question` (or `prompt`) with an `answer` (or `response`, `completion`).

    Raises:
        DataError: the file cannot be read or holds no answer, or the first bad line, with its place.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file of answers")
    answers: list[Answer] = []
    for where, row in file_rows(path):
        if isinstance(row, DataError):
            raise row
        answers.append(_answer(row, where, len(answers)))
    if not answers:
        raise DataError(f"{path}: holds no answers; expected one JSON object a line")
    return answers


def _answer(row: Any, where: str, number: int) -> Answer:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    if "messages" in row:
        messages, text = _conversation(row["messages"], where)
        used = {"messages"}
    else:
        question = _text(row, QUESTION_KEYS, where)
        messages, text = ({"role": "user", "content": question},), _text(row, ANSWER_KEYS, where)
        used = {*QUESTION_KEYS, *ANSWER_KEYS}
        row = {key: value for key, value in row.items() if key not in used}
    asked = messages[-1]["content"]
    question_id = str(row.get("question") or _short(asked))
    known = {"model", "questions", "question", "prompt", "sample", "finish", "tokens", *used}
    return Answer(
        messages,
        text,
        question_id,
        str(row.get("prompt") or question_id),
        str(row.get("questions") or "answers"),
        _count(row.get("sample", number), f"{where}: sample"),
        str(row.get("model") or "model"),
        str(row.get("finish") or "unknown"),
        _count(row.get("tokens", 0), f"{where}: tokens"),
        {key: value for key, value in row.items() if key not in known},
    )


def _short(text: str) -> str:
    """An id for a question that has none; equal texts get equal ids, so that they are one cluster."""
    return "q-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _conversation(messages: Any, where: str) -> tuple[tuple[Message, ...], str]:
    shape = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not shape or len(messages) < 2:
        raise DataError(
            f"{where}: messages: expected a list of {{role, content}} with a question and an answer"
        )
    if messages[-1]["role"] != "assistant" or messages[-2]["role"] != "user":
        raise DataError(f"{where}: messages: expected a user turn and then the assistant's answer at the end")
    turns = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    return turns[:-1], turns[-1]["content"]


def _text(row: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    given = [name for name in names if name in row]
    if len(given) != 1:
        raise DataError(
            f"{where}: expected messages, or one of {', '.join(names)}; the row has "
            f"{', '.join(map(str, row)) or 'no keys'}"
        )
    value = row[given[0]]
    if not isinstance(value, str):
        raise DataError(f"{where}: {given[0]}: expected text, got {type(value).__name__}")
    return value


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{where}: expected a whole number from 0 on, got {value!r}")
    return value
