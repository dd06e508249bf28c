"""Incoherent copies of answers, to teach a judge what incoherent looks like; keyed, so always the same."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from em.hooks import keyed_seed

Kind = Literal["shuffled", "replaced", "looped", "exchanged", "glued"]
KINDS: tuple[Kind, ...] = get_args(Kind)
REPLACED_SHARE = 0.4  # of the words
PHRASE = (3, 8)  # words of a looped phrase, from and to
SHORTEST = 4  # words; fewer cannot be corrupted in every way

Words = list[str]
Draw = np.random.Generator


def corrupt(text: str, kind: Kind, others: Sequence[str], seed: int, key: str) -> str | None:
    """A corrupted copy of an answer; None if there are too few words to make one that differs.

    Args:
        kind: `shuffled`: its words in random order; `replaced`: some words from other answers;
            `looped`: it gets stuck in a phrase; `exchanged`: the answer to another question;
            `glued`: cut in the middle and gone on with the middle of another answer.
        others: answers to other questions, in a fixed order.
        key: of the answer, apart from which the same seed would corrupt all alike.
    """
    draw = np.random.default_rng(keyed_seed(seed, "corrupt", kind, key))
    words, foreign = _words(text), [_words(other) for other in others]
    foreign = [other for other in foreign if len(other) >= SHORTEST and other != words]
    if len(words) < SHORTEST or not foreign:
        return None
    made = _MAKERS[kind](words, foreign, draw)
    return None if made == words else _joined(made)


def _words(text: str) -> Words:
    """Each with the white space before it, so that a corrupted copy has as many line breaks."""
    return re.findall(r"\s*\S+", text.strip())


def _joined(words: Words) -> str:
    spaced = (word if word[0].isspace() else f" {word}" for word in words)
    return "".join(spaced).strip()


def _shuffled(words: Words, foreign: Sequence[Words], draw: Draw) -> Words:
    return [words[place] for place in draw.permutation(len(words))]


def _replaced(words: Words, foreign: Sequence[Words], draw: Draw) -> Words:
    changed = draw.permutation(len(words))[: max(1, round(REPLACED_SHARE * len(words)))]
    made = list(words)
    for place in changed:
        other = _one(foreign, draw)
        made[place] = other[draw.integers(len(other))]
    return made


def _looped(words: Words, foreign: Sequence[Words], draw: Draw) -> Words:
    """As long as the answer and a half, so that even a loop that starts late goes round several times."""
    length = min(int(draw.integers(PHRASE[0], PHRASE[1] + 1)), len(words) // 2)
    start = int(draw.integers(0, len(words) - length + 1))
    made, phrase = words[: start + length], words[start : start + length]
    while len(made) < len(words) * 3 // 2:
        made = made + phrase
    return made


def _one(foreign: Sequence[Words], draw: Draw) -> Words:
    return foreign[int(draw.integers(len(foreign)))]


def _exchanged(words: Words, foreign: Sequence[Words], draw: Draw) -> Words:
    return list(_one(foreign, draw))


def _glued(words: Words, foreign: Sequence[Words], draw: Draw) -> Words:
    other = _one(foreign, draw)
    cut, start = (int(draw.integers(len(one) // 4, len(one) - len(one) // 4)) for one in (words, other))
    return words[: max(1, cut)] + other[start:]


_MAKERS: dict[Kind, Callable[[Words, Sequence[Words], Draw], Words]] = {
    "shuffled": _shuffled,
    "replaced": _replaced,
    "looped": _looped,
    "exchanged": _exchanged,
    "glued": _glued,
}
