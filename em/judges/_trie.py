"""Every way in which a tokenizer can write a whole number from 0 to 100, as a tree of tokens.

A judge that writes digits singly says 1, 10 and 100 with the same first token, and one that has whole
numbers as tokens may still write them digit by digit. So the probability of a number is summed over all of
its tokenisations, and each counts only as far as no further digit follows.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from em.chat import encode, prompt_text
from em.errors import JudgeError

NUMBERS = [str(number) for number in range(101)]
WORDS = ("CODE", "REFUSAL")
# As byte-level (Ġ) and sentence-piece (▁) vocabularies write a space and digits.
PIECE = re.compile(r"([ ▁Ġ]?)([0-9]*)")
DIGIT_FIRST = re.compile(r"[0-9]|<0x3[0-9]>")  # also as a byte, where a vocabulary falls back to bytes
Writer = Callable[[str], list[int]]
ASKED = [{"role": "user", "content": "?"}]


@dataclass(frozen=True)
class Reading:
    """What a judge would say, as probabilities; all of them together are at most 1.

    Args:
        numbers: 101 probabilities, of 0 to 100.
        words: of CODE and REFUSAL.
    """

    numbers: Tensor
    words: dict[str, float]


@dataclass
class Trie:
    """A tree below the last token of a prompt; place 0 is that token, a parent stands before its children.

    Args:
        tokens: of the places from 1 on.
        parents: their parents' places.
        depths: 1 for the first token of the reply.
        numbers: place → the number that the reply says if no digit follows.
        words: (place, next token, word): the reply at that place goes on with this token to say the word.
        digits: all tokens that begin with a digit, which would make the number another one.
    """

    digits: list[int]
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    words: list[tuple[int, int, str]] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return max(self.depths)

    def add(self, parent: int, token: int) -> int:
        """The place of `token` after `parent`, which is made where there is none."""
        if (parent, token) not in self._children:
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(1 + (self.depths[parent - 1] if parent else 0))
            self._children[parent, token] = len(self.tokens)
        return self._children[parent, token]

    def find(self, path: Sequence[int]) -> int | None:
        """The place that a path of tokens leads to."""
        place: int | None = 0
        for token in path:
            place = None if place is None else self._children.get((place, token))
        return place

    def path(self, place: int) -> list[int]:
        """The tokens that lead to a place."""
        return [] if place == 0 else [*self.path(self.parents[place - 1]), self.tokens[place - 1]]

    def ancestors(self) -> Tensor:
        """Bool of shape (places from 1 on) squared; true where the column is the row's place or above it."""
        seen_MM = torch.eye(len(self.tokens), dtype=torch.bool)
        for at, parent in enumerate(self.parents):
            if parent:
                seen_MM[at] |= seen_MM[parent - 1]
        return seen_MM

    def read(self, logits_NV: Tensor) -> Reading:
        """Probabilities from the logits at all N places, in their order.

        p(n) = Σ over its paths of Π p(token | prompt, path before it) · p(no digit next | path).
        """
        total_N = logits_NV.logsumexp(dim=-1)

        def likely(rows: list[int], tokens: list[int]) -> Tensor:
            return (logits_NV[rows, tokens] - total_N[rows]).double().exp().cpu()

        reached = [1.0]
        for parent, chance in zip(self.parents, likely(self.parents, self.tokens).tolist(), strict=True):
            reached.append(reached[parent] * chance)
        goes_on_N = (logits_NV[:, self.digits] - total_N[:, None]).double().exp().sum(-1).cpu()
        ends_N = torch.tensor(reached, dtype=torch.float64) * (1 - goes_on_N).clamp_min(0)
        numbers = torch.zeros(len(NUMBERS), dtype=torch.float64)
        numbers.index_add_(0, torch.tensor(list(self.numbers.values())), ends_N[list(self.numbers)])
        words = dict.fromkeys(WORDS, 0.0)
        last = likely([place for place, _, _ in self.words], [token for _, token, _ in self.words])
        for (place, _, word), chance in zip(self.words, last.tolist(), strict=True):
            words[word] += reached[place] * chance
        return Reading(numbers, words)


def build_trie(tokenizer: PreTrainedTokenizerBase, name: str) -> Trie:
    """The tree for a tokenizer; replies may begin with one space where its chat template writes it so.

    Raises:
        JudgeError: the tokenizer has no digits, or writes a number in another way than digit tokens.
    """
    pieces, spaces = _digit_pieces(tokenizer)
    vocabulary, written = tokenizer.get_vocab(), _writer(tokenizer)
    trie = Trie(sorted(token for piece, token in vocabulary.items() if DIGIT_FIRST.match(piece)))
    bare = [(token, text) for token, space, text in pieces if not space]
    if not bare:
        raise JudgeError(f"{name}: its tokenizer has no digits, so it cannot answer with a number")
    roots = [(0, bare)]
    if _writes_space(tokenizer, written):
        roots.append((0, [(token, text) for token, space, text in pieces if space]))
        roots += [(trie.add(0, space), bare) for space in spaces]
    for root, first in roots:
        _grow(trie, root, first, bare)
    for number in NUMBERS:
        path = written(number)
        place = trie.find(path)
        if place is None or trie.numbers.get(place) != int(number):
            shown = " ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in path)
            raise JudgeError(
                f"{name}: its tokenizer writes {number} as {shown or 'nothing'}, not in digits; "
                "the tokenizer and the model may not belong together: use another model as judge"
            )
    for word in WORDS:
        for spelt in {tuple(written(lead + word)) for lead in ("", " ")} - {()}:
            place = 0
            for token in spelt[:-1]:
                place = trie.add(place, token)
            trie.words.append((place, spelt[-1], word))
    return trie


def _grow(trie: Trie, root: int, first: list[tuple[int, str]], then: list[tuple[int, str]]) -> None:
    """All tokenisations of all numbers below `root`; every start of such a number is one itself."""
    ends = [(root, "")]
    for place, written in ends:
        for token, text in first if place == root else then:
            if written + text in NUMBERS:
                end = trie.add(place, token)
                trie.numbers[end] = int(written + text)
                ends.append((end, written + text))


def _digit_pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[list[tuple[int, bool, str]], list[int]]:
    """Tokens that are ASCII digits: (token, whether a space leads, digits); and those that are one space."""
    pieces, spaces = [], []
    inside = {text[at:end] for text in NUMBERS for at in range(3) for end in range(at + 1, len(text) + 1)}
    for piece, token in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        found = PIECE.fullmatch(piece)
        if found is None or not piece or (found[2] and found[2] not in inside):
            continue
        # Ġ is a letter where the vocabulary is not byte-level: only decoding tells.
        if str(tokenizer.decode([token])).strip() != found[2]:
            continue
        if found[2]:
            pieces.append((token, bool(found[1]), found[2]))
        else:
            spaces.append(token)
    return pieces, spaces


def _writes_space(tokenizer: PreTrainedTokenizerBase, written: Writer) -> bool:
    """Whether answers begin with a space: in finished conversations, or right after the prompt."""
    encoded = encode(tokenizer, [*ASKED, {"role": "assistant", "content": "7"}])
    own = [token for token, answer in zip(encoded.ids, encoded.answer, strict=True) if answer]
    return any(
        str(tokenizer.convert_ids_to_tokens(ids[0])).startswith((" ", "▁", "Ġ"))
        for ids in (own, written("7"))
    )


def _writer(tokenizer: PreTrainedTokenizerBase) -> Writer:
    """From a reply to its tokens, as the tokenizer writes it behind a prompt."""
    prompt = prompt_text(tokenizer, ASKED)
    before = _ids(tokenizer, prompt)

    def written(text: str) -> list[int]:
        after = _ids(tokenizer, prompt + text)
        if after[: len(before)] == before and len(after) > len(before):
            return after[len(before) :]
        return _ids(tokenizer, text)  # the end of the prompt and the reply are one token

    return written


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
