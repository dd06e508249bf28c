"""Talk to a trained run in the terminal: the reference and the adapted model side by side."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from em.datamodules.answers import Message
from em.datamodules.questions import Prompt
from em.errors import EmError
from em.figures.words import FORBIDDEN
from em.generation.local import generate
from em.generation.requests import Request
from em.generation.sampling import Sampling
from em.runs import LoadedRun

HELP = """\
/reset            forget the conversation
/system TEXT      set the system prompt, and forget the conversation; without TEXT none
/scale X          the adapted model with its update times X (1: as trained, 0: the reference)
/temperature X    0 takes the most likely token
/tokens N         longest answer
/seed N           another draw
/help, /quit"""


@dataclass
class Conversation:
    """Both sides of a chat; each model sees its own answers.

    Args:
        scale: factor of the update on the adapted side.
    """

    loaded: LoadedRun
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=200))
    system: str | None = None
    scale: float = 1.0
    turns: dict[str, list[Message]] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[str, str]:
        return "reference", self.loaded.directory.path.resolve().name

    def ask(self, text: str) -> dict[str, str]:
        """The answer of each side by name.

        Raises:
            EmError: the model cannot answer; the conversation is as before.
        """
        intervention = self.loaded.intervention
        contexts: dict[str, AbstractContextManager[Any]] = {
            self.sides[0]: intervention.disabled(),
            self.sides[1]: self._adapted(),
        }
        said = {}
        for side, context in contexts.items():
            before = self.turns.get(side) or self._opening()
            messages = (*before, {"role": "user", "content": text})
            request = Request(Prompt(messages, "chat", "chat", "chat"), len(before) // 2)
            with context:
                (answer,) = generate(self.loaded.backbone, [request], self.sampling, side, progress=False)
            said[side] = answer.text
        for side, answer_text in said.items():
            self.turns.setdefault(side, self._opening()).extend(
                [{"role": "user", "content": text}, {"role": "assistant", "content": answer_text}]
            )
        return said

    @contextmanager
    def _adapted(self) -> Iterator[None]:
        intervention = self.loaded.intervention
        with nullcontext() if self.scale == 1 else intervention.rescaled(self.scale), intervention.merged():
            yield

    def _opening(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash, and say what it did.

        Raises:
            EmError: it is unknown or its value does not fit.
        """
        name, _, value = line[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], str]] = {
            "reset": self._reset,
            "system": self._set_system,
            "scale": self._set_scale,
            "temperature": lambda text: self._sample(temperature=_number(text)),
            "tokens": lambda text: self._sample(max_tokens=_whole(text)),
            "seed": lambda text: self._sample(seed=_whole(text)),
            "help": lambda text: HELP,
        }
        if name not in commands:
            raise EmError(f"unknown command /{name}; /help lists them")
        return commands[name](value.strip())

    def _reset(self, text: str) -> str:
        self.turns.clear()
        return "a new conversation"

    def _set_system(self, text: str) -> str:
        self.turns.clear()
        self.system = text or None
        return (
            f"a new conversation with the system prompt: {text}" if text else "a new conversation without one"
        )

    def _set_scale(self, text: str) -> str:
        self.scale = _number(text)
        return f"the update times {self.scale:g}, from the next answer on"

    def _sample(self, **changes: Any) -> str:
        self.sampling = replace(self.sampling, **changes)
        return ", ".join(f"{name} {value:g}" for name, value in changes.items())


def chat(
    conversation: Conversation, console: Console | None = None, lines: Iterator[str] | None = None
) -> None:
    """Read lines until /quit or their end; an error is shown and the chat goes on."""
    console = console or Console(highlight=False)
    reference, adapted = conversation.sides
    console.print(f"{reference} | {adapted}; /help lists commands, /quit ends", markup=False)
    for line in lines or _typed(console):
        text = line.strip()
        if text in ("/quit", "/exit"):
            return
        if not text:
            continue
        try:
            if text.startswith("/"):
                console.print(conversation.command(text), markup=False, style="dim")
            else:
                console.print(_side_by_side(conversation.ask(text)))
        except EmError as error:
            console.print(f"{type(error).__name__}: {error}", markup=False, style="red")


def _typed(console: Console) -> Iterator[str]:
    while True:
        try:
            yield console.input("> ", markup=False) if sys.stdin.isatty() else input()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            console.print(f"that line is not UTF-8 ({error.reason})", markup=False, style="red")


def _side_by_side(said: dict[str, str]) -> Table:
    table = Table(expand=True, show_lines=False)
    for side in said:
        table.add_column(Text(side), ratio=1, overflow="fold")
    # Text is never read as markup, and control sequences of an answer must not reach the terminal.
    table.add_row(*(Text(FORBIDDEN.sub("\ufffd", text).strip() or "(no text)") for text in said.values()))
    return table


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise EmError(f"expected a number, got {text!r}") from error


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise EmError(f"expected a whole number, got {text!r}")
    return int(text)
