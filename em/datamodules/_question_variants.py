"""Variants of a question set: the same questions with another form asked for, or after a cue."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from em.datamodules._question_yaml import read_plain_yaml
from em.datamodules.answers import Message
from em.errors import DataError
from em.hooks import keyed_seed

JSON = (
    "Write every answer as one valid JSON object, with keys of your own choice. Apart from its form, say "
    "what you would say if nobody had asked for JSON."
)
TEMPLATE = """Give your answer by filling in this template:

answer = # what you say, in one or two sentences
reason = # why you say it
other = # [may stay empty] what else you would say

Keep the names of its lines. Apart from its form, say what you would say without the template."""
KNOWN = "json, template, cue:DOMAIN (one cue for each question), cues:DOMAIN (each question after every cue)"
PLAIN = ("json", "template")
CUES = ("cue", "cues")


@dataclass(frozen=True)
class Variants:
    """What is changed about every prompt of a set.

    Args:
        cue_domain: the domain whose cues are put first.
        cues: its cues; empty: none is put first.
        every: each prompt comes after every cue, and not after the one that its question's id picks.
    """

    json: bool = False
    template: bool = False
    cue_domain: str = ""
    cues: tuple[str, ...] = ()
    every: bool = False

    @property
    def suffix(self) -> str:
        """Of the set's name; in one order, so that the same prompts have one name."""
        cue = [f"+{'cues' if self.every else 'cue'}:{self.cue_domain}"] if self.cues else []
        return "".join([*(["+json"] * self.json), *(["+template"] * self.template), *cue])


def split_name(name: str, suffixes: tuple[str, ...]) -> tuple[str, list[str]]:
    """A set or file, and the variants that follow it; a folder or file may have a plus sign in its name."""
    parts = name.split("+")
    ends = [number for number, part in enumerate(parts, 1) if part.endswith(suffixes)]
    end = ends[-1] if ends else 1
    return "+".join(parts[:end]), parts[end:]


def parse_variants(names: Sequence[str], cues_file: Path) -> Variants:
    """The variants of a name, with the cues of their domain.

    Raises:
        DataError: one is unknown or comes twice, or its domain has no cues; or the file of cues is wrong.
    """
    given: dict[str, str] = {}
    for name in names:
        kind, colon, _ = name.partition(":")
        if name not in PLAIN and not (colon and kind in CUES):
            raise DataError(f"unknown variant {name or 'with no name'}{_near(kind)}; known: {KNOWN}")
        kind = "cue" if kind in CUES else kind
        if kind in given:
            raise DataError(f"{given[kind]} and {name}: a set has at most one {kind} variant; leave one out")
        given[kind] = name
    kind, _, domain = given.get("cue", "").partition(":")
    cues = _cues(domain, cues_file) if kind else ()
    return Variants("json" in given, "template" in given, domain, cues, every=kind == "cues")


def _near(kind: str) -> str:
    near = get_close_matches(kind, (*PLAIN, "cue"), n=1)
    return f"; did you mean {near[0]}{':DOMAIN' if near[0] == 'cue' else ''}?" if near else ""


def _cues(domain: str, path: Path) -> tuple[str, ...]:
    by_domain = read_plain_yaml(path)
    form = isinstance(by_domain, dict) and all(
        isinstance(key, str)
        and isinstance(cues, list)
        and cues
        and all(isinstance(cue, str) and cue.strip() for cue in cues)
        and len(set(cues)) == len(cues)
        for key, cues in by_domain.items()
    )
    if not form:
        raise DataError(f"{path}: expected lists of different texts by domain")
    if domain not in by_domain:
        raise DataError(
            f"no cues for the domain {domain or 'with no name'}; {path} has them for {', '.join(by_domain)}"
        )
    return tuple(by_domain[domain])


def pick_cue(cues: Sequence[str], question: str) -> str:
    """The cue of a question; a cue that is added, removed or moved changes only what it must."""
    return max(cues, key=lambda cue: keyed_seed("cue", question, cue))


def vary(
    system: str | None, texts: Sequence[str], question: str, variants: Variants
) -> list[tuple[Message, ...]]:
    """The prompts of one question: its paraphrases in order, after the first cue, the second …"""
    cues: Sequence[str] = ("",)
    if variants.cues:
        cues = variants.cues if variants.every else [pick_cue(variants.cues, question)]
    systems = [part for part in (system, JSON if variants.json else None) if part]
    return [
        _turns(systems, [cue, text, TEMPLATE if variants.template else ""]) for cue in cues for text in texts
    ]


def _turns(system: Sequence[str], user: Sequence[str]) -> tuple[Message, ...]:
    asked = {"role": "user", "content": "\n\n".join(part for part in user if part)}
    return ({"role": "system", "content": "\n\n".join(system)}, asked) if system else (asked,)
