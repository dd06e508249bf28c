"""Plain YAML values to typed ones, collecting every problem on the way."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


INVALID: Any = object()  # stands for a value that was reported; containers leave it out


@dataclass
class Problems:
    """Problem lines, and the keys they concern (what else is said of those would only repeat).

    Args:
        paths: all keys of the schema, to suggest the section that a misplaced key belongs to.
    """

    paths: Sequence[str] = ()
    lines: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, key: str, text: str, *related: str) -> None:
        self.lines.append(f"{key}: {text}")
        self.keys.update((key, *related))

    def concern(self, line: str) -> bool:
        """Whether a line names one of the keys, or a key above or below it."""
        named = re.findall(r"[a-z_]\w*(?:\.\w+|\[\d+\])+|^\w+(?=:)", line)
        return any(_within(a, b) or _within(b, a) for a in named for b in self.keys)

    def unknown(self, prefix: str, name: str, known: Sequence[str]) -> None:
        """Report a key that does not exist, with the nearest that does."""
        near = get_close_matches(name, known, n=1)
        elsewhere = [path for path in self.paths if path.rpartition(".")[2] == name]
        suggestion = prefix + near[0] if near else next(iter(elsewhere), None)
        if suggestion:
            self.add(prefix + name, f"unknown key; did you mean {suggestion}?", suggestion)
        else:
            self.add(prefix + name, f"unknown key; valid keys: {', '.join(known) or 'none'}")


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))


def convert(value: Any, annotation: Any, key: str, problems: Problems) -> Any:
    """`value` as `annotation` (a schema dataclass, or a type that `em.config.annotations` gives).

    An int and a numeric string pass as a float (some YAML loaders read `1e-4` as text); a bool never
    passes as a number. What does not fit is reported and comes back as `INVALID`.
    """
    origin = get_origin(annotation) or annotation
    arguments = get_args(annotation)
    if origin in (Union, UnionType):
        return _union(value, annotation, key, problems)
    if origin is Literal:
        if any(value == item and type(value) is type(item) for item in arguments):
            return value
        return _mismatch(value, annotation, key, problems)
    if isinstance(origin, type) and is_dataclass(origin):
        return section(value, origin, key, problems)
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return _sequence(value, annotation, key, problems)
    if origin is dict and isinstance(value, dict):
        of = arguments[1] if arguments else Any
        made = {
            str(name): convert(item, of, f"{key}.{name}", problems)
            for name, item in value.items()
            if item is not None or not _is_container(of)  # null takes an inherited entry out
        }
        return {name: item for name, item in made.items() if item is not INVALID}
    return _scalar(value, origin, key, problems)


def section(value: Any, cls: Any, key: str, problems: Problems) -> Any:
    """A schema dataclass from a mapping; a key that does not fit keeps its default."""
    if not isinstance(value, dict):
        return _mismatch(value, cls, key, problems)
    prefix = f"{key}." if key else ""
    hints = get_type_hints(cls)
    made = {}
    for name, item in value.items():
        if name not in hints:
            problems.unknown(prefix, str(name), list(hints))
        elif item is None and _is_container(hints[name]):
            continue  # a section whose keys are all commented out
        else:
            made[name] = convert(item, hints[name], prefix + name, problems)
    return cls(**{name: item for name, item in made.items() if item is not INVALID})


def _is_container(annotation: Any) -> bool:
    return get_origin(annotation) in (list, dict) or is_dataclass(annotation)


def _sequence(value: list[Any] | tuple[Any, ...], annotation: Any, key: str, problems: Problems) -> Any:
    origin, of = get_origin(annotation) or annotation, list(get_args(annotation)) or [Any]
    fixed = origin is tuple and of[-1] is not ... and get_args(annotation) != ()
    if fixed and len(of) != len(value):
        problems.add(key, f"expected {len(of)} values, got {len(value)}")
        return INVALID
    each = of if fixed else [of[0]] * len(value)
    made = [
        convert(item, kind, f"{key}[{index}]", problems)
        for index, (item, kind) in enumerate(zip(value, each, strict=True))
    ]
    kept = [item for item in made if item is not INVALID]
    return tuple(kept) if origin is tuple else kept


def _union(value: Any, annotation: Any, key: str, problems: Problems) -> Any:
    alternatives = get_args(annotation)
    fitting = []
    for alternative in alternatives:
        scratch = Problems(problems.paths)
        made = convert(value, alternative, key, scratch)
        if not scratch.lines:
            fitting.append(made)
        elif isinstance(value, dict | list) and any(not line.startswith(f"{key}:") for line in scratch.lines):
            # The right container with wrong contents: say which, not that a container was expected.
            problems.lines += scratch.lines
            problems.keys |= scratch.keys
            return made
    if not fitting:
        return _mismatch(value, annotation, key, problems)
    unchanged = [made for made in fitting if type(made) is type(value)]
    return (unchanged or fitting)[0]


def _scalar(value: Any, kind: Any, key: str, problems: Problems) -> Any:
    if kind is float and isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif kind not in WORDS or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    return _mismatch(value, kind, key, problems)


def _mismatch(value: Any, annotation: Any, key: str, problems: Problems) -> Any:
    near = get_close_matches(value, _choices(annotation), n=1) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    problems.add(key, f"expected {describe(annotation)}, got {show(value)}{hint}")
    return INVALID


def _choices(annotation: Any) -> list[str]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [item for item in arguments if isinstance(item, str)]
    return [choice for item in arguments for choice in _choices(item)]


def describe(annotation: Any) -> str:
    """A type in words."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, UnionType):
        return " or ".join(describe(item) for item in get_args(annotation))
    if origin is Literal:
        choices = [str(item) for item in get_args(annotation)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return WORDS.get(origin, "a mapping")


def show(value: Any) -> str:
    """A value as YAML shows it, shortened."""
    text = {None: "null", True: "true", False: "false"}[value] if _is_word(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
