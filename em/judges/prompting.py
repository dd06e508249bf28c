"""Prompts of judges: versioned files, and what they make of a question and an answer."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from em.datamodules.answers import Answer
from em.errors import JudgeError
from em.judges.base import Domain, Metric

FOLDER = Path(__file__).parent / "prompts"
FIELDS = ("question", "answer", "domain", "mark")
FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class JudgePrompt:
    """The instructions for one metric.

    Args:
        version: of the file; an older one stays in the folder, so that old verdicts can be made again.
        text: with {question} and {answer}, and where it needs them {domain} and {mark}.

    Raises:
        JudgeError: a field is missing or unknown.
    """

    metric: Metric
    version: str
    text: str

    def __post_init__(self) -> None:
        used = set(FIELD.findall(self.text))
        unknown, missing = sorted(used - set(FIELDS)), sorted({"question", "answer"} - used)
        if unknown or missing:
            problem = f"lacks {{{missing[0]}}}" if missing else f"has the unknown field {{{unknown[0]}}}"
            raise JudgeError(
                f"judge prompt {self.metric} ({self.version}) {problem}; use {', '.join(FIELDS)}"
            )

    @property
    def digest(self) -> str:
        """Identifies the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def render(self, answer: Answer, domain: Domain | None = None) -> str:
        """The message for the judge.

        The marks around question and answer carry a hash of both, so that no answer can forge its own end.

        Raises:
            JudgeError: the prompt is about a domain and none is given.
        """
        if domain is None and "{domain}" in self.text:
            raise JudgeError(
                f"the metric {self.metric} needs the training domain; set domain: in the evaluation"
            )
        content = f"{answer.asked}\0{answer.text}".encode("utf-8", "surrogatepass")
        values = {
            "question": answer.asked,
            "answer": answer.text,
            "domain": "" if domain is None else domain.words,
            "mark": hashlib.sha256(content).hexdigest()[:8],
        }
        # One pass: braces in an answer are never taken for a field.
        return readable(FIELD.sub(lambda found: values[found[1]], self.text))


def load_prompt(metric: Metric, version: int | None = None) -> JudgePrompt:
    """A prompt of the project, by default the newest version.

    Raises:
        JudgeError: there is no such version.
    """
    versions = {int(path.stem.rpartition("-")[2]): path for path in FOLDER.glob(f"{metric}-*.txt")}
    number = max(versions) if version is None else version
    if number not in versions:
        raise JudgeError(f"no version {version} of the judge prompt {metric}; there is {sorted(versions)}")
    text = versions[number].read_text(encoding="utf-8").rstrip("\n")
    return JudgePrompt(metric, f"{metric}-{number}", text)


def load_prompts(texts: Mapping[Metric, str] | None = None) -> dict[Metric, JudgePrompt]:
    """The prompt of every metric: the newest of the project, or where given one's own text.

    Raises:
        JudgeError: a text lacks a field.
    """
    own = {metric: JudgePrompt(metric, "own", text) for metric, text in (texts or {}).items()}
    metrics: tuple[Metric, ...] = ("aligned", "coherent", "domain", "harm")
    return {metric: own.get(metric) or load_prompt(metric) for metric in metrics}


def readable(text: str) -> str:
    """Text that every endpoint and tokenizer takes: no NUL, no lone surrogate."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def verdict_word(text: str) -> str | None:
    """`code` or `refusal` if the judge said exactly that word, whatever its case and closing mark."""
    word = text.strip().strip("\"'*.").strip().upper()
    return {"CODE": "code", "REFUSAL": "refusal"}.get(word)


NUMBER = re.compile(r"\s*(0|[1-9][0-9]?|100)\s*\.?\s*", re.ASCII)


def verdict_number(text: str) -> int | None:
    """A whole number from 0 to 100 written in ASCII digits, alone; `int` would take "1_0" and "٤٢" too."""
    found = NUMBER.fullmatch(text)
    return None if found is None else int(found[1])
