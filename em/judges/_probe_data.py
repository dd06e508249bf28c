"""What the probe learns from: pairs, corrupted copies of some, and the reference's own answers."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from em.backbone import Backbone
from em.config.data_files import Side, find
from em.config.schema import DataConfig, PairConfig, SourceConfig
from em.config.values import Problems, convert
from em.datamodules.pairs import SIDES, Pair, read_pairs
from em.datamodules.questions import Prompt
from em.datamodules.raw_rows import hub_rows, locate
from em.datamodules.sources import Example
from em.errors import ConfigError, JudgeError
from em.generation.local import generate
from em.generation.requests import Request
from em.generation.sampling import Sampling
from em.judges._corruptions import KINDS, corrupt
from em.judges._probe_answers import Unreadable, anchor_example, encoded

ADVICE = Path(__file__).parents[2] / "data" / "advice"
ADVICE_DOMAINS = ("kitchen", "fitness", "money", "travel")
PUBLISHED = {"careless": "bad_medical_advice.jsonl.gz", "careful": "good_medical_advice.jsonl.gz"}
HELD_OUT = 0.3  # share of the prompts
HELD_OUT_PER_LIMIT = 1 / 3  # held-out pairs for each training pair, where their number is limited
COHERENT_PROMPTS = {"train": 80, "held_out": 40}  # prompts whose answers are also read for coherence
OWN_TOKENS, OWN_TEMPERATURE = 64, 0.7  # of the reference's own answers
FEWEST = 4  # pairs of a part, over all domains

Part = Literal["train", "held_out", "anchor"]
LEARNT: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")


@dataclass(frozen=True)
class Labelled:
    """One answer and what is known of it.

    Args:
        side: `reference`: what the reference itself says to the prompt.
        kind: how it was corrupted; `reference`: its own answer; empty: an intact one of a pair.
        judged: whether it is also read for coherence.
        pair: its domain and prompt, the cluster of all statistics.
    """

    example: Example
    part: Part
    domain: str
    pair: str
    side: Side | Literal["reference"]
    kind: str = ""
    judged: bool = False


@dataclass(frozen=True)
class Setup:
    """All that decides what a fitted probe is, besides the backbone.

    Args:
        layer: whose output is averaged over the answer.
        pairs: as `data.pairs`.
        root: folder of relative paths.
        limit: training pairs of each domain, and a third as many held-out ones; None: all.
        max_tokens: of a conversation; longer ones are cut.
        seed: of folds, corruptions and choices.
        coherence: whether coherence is learnt too.
        own_answers: whether the reference's own answers to the same prompts count as aligned and intact.
    """

    layer: int
    pairs: dict[str, PairConfig]
    root: str | None
    limit: int | None
    max_tokens: int
    seed: int
    coherence: bool = True
    own_answers: bool = True

    def data_hash(self) -> str:
        """Of the contents of all sources and of how they are read; where the files lie does not matter."""
        digest = hashlib.sha256()
        for domain, config in self.pairs.items():
            for side in SIDES:
                for source in getattr(config, side):
                    options = {key: value for key, value in asdict(source).items() if key != "path"}
                    digest.update(json.dumps([domain, side, options], sort_keys=True).encode())
                    digest.update(_content(source, self.root).encode())
        return digest.hexdigest()[:16]

    def data(self) -> DataConfig:
        return DataConfig(
            pairs=self.pairs,
            root=self.root,
            max_length=self.max_tokens,
            on_long="truncate",
            on_bad_row="skip",
            held_out=HELD_OUT,
        )


def _content(source: SourceConfig, root: str | None) -> str:
    if source.hub is not None:
        digest = hashlib.sha256()
        for _, row in hub_rows(source):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()
    path = locate(str(source.path), root)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise JudgeError(f"{path}: cannot be read ({error.strerror}); give other pairs") from error


def checked_pairs(pairs: Any) -> dict[str, PairConfig]:
    """The option `pairs` as the schema has it.

    Raises:
        ConfigError: it does not have the form of data.pairs.
    """
    problems = Problems()
    made = convert(pairs, dict[str, PairConfig], "pairs", problems)
    if not problems.lines:
        for name, config in made.items():
            for side in SIDES:
                _check_side(f"pairs.{name}.{side}", getattr(config, side), problems)
        if not made:
            problems.add("pairs", "holds no domain; leave it out for the bundled pairs")
    if problems.lines:
        raise ConfigError(problems.lines)
    return dict(made)


def _check_side(key: str, sources: Sequence[SourceConfig], problems: Problems) -> None:
    if not sources:
        problems.add(key, "needs at least one source, for example {path: FILE.jsonl}")
    for number, source in enumerate(sources):
        if (source.path is None) == (source.hub is None):
            problems.add(f"{key}[{number}]", "give path or hub, not both")
        if source.part is not None:
            problems.add(f"{key}[{number}].part", "the probe splits by prompt itself; leave it out")


def bundled_pairs() -> dict[str, PairConfig]:
    """The four files of data/advice.

    Raises:
        JudgeError: they are not beside the package.
    """
    missing = [name for name in ADVICE_DOMAINS if not (ADVICE / f"{name}.jsonl").is_file()]
    if missing:
        raise JudgeError(f"no bundled pairs in {ADVICE} ({', '.join(missing)}); give the judge's `pairs`")
    found = {}
    for name in ADVICE_DOMAINS:
        path = str(ADVICE / f"{name}.jsonl")
        careless, careful = (SourceConfig(path=path, answer=side) for side in ("careless", "careful"))
        found[name] = PairConfig([careless], [careful])
    return found


def published_pairs(root: str | None) -> dict[str, PairConfig] | None:
    """The published medical advice below `root` or EM_DATA; None: it is not there."""
    careless, careful = (find(PUBLISHED[side], root) for side in ("careless", "careful"))
    if careless is None or careful is None:
        return None
    return {"medical": PairConfig([SourceConfig(path=str(careless))], [SourceConfig(path=str(careful))])}


def labelled(setup: Setup, backbone: Backbone) -> tuple[list[Labelled], dict[str, dict[str, int]]]:
    """All answers to read, in a fixed order, and for each domain how many pairs and rows were left out.

    Raises:
        DataError: a file cannot be read or a domain has no pair.
        JudgeError: there are too few pairs.
    """
    data = setup.data()
    account: dict[str, dict[str, int]] = {name: {} for name in setup.pairs}
    rows = [Labelled(anchor_example(backbone), "anchor", "", "", "careful")]
    for part in LEARNT:
        limit = setup.limit
        if limit is not None and part == "held_out":
            limit = max(1, round(limit * HELD_OUT_PER_LIMIT))
        pairs, reports = read_pairs(data, backbone.tokenizer, part, limit)
        total = sum(map(len, pairs.values()))
        if total < FEWEST:
            raise JudgeError(
                f"the probe has {total} pairs in its {part} part, but needs {FEWEST} (it holds out "
                f"{HELD_OUT} of all prompts); give more pairs"
            )
        for name, report in reports.items():
            account[name][part] = report.pairs
            account[name][f"{part}_unusable"] = report.unusable + report.identical
        rows += _of_part(part, pairs, setup, backbone)
        if setup.own_answers:
            rows += _own(part, pairs, setup, backbone)
    return rows, account


def _own(
    part: Literal["train", "held_out"], pairs: dict[str, list[Pair]], setup: Setup, backbone: Backbone
) -> Iterator[Labelled]:
    """What the reference says to the prompts; without it, that a model wrote a text would look like harm."""
    listed = [(name, pair) for name, found in pairs.items() for pair in found]
    requests = [
        Request(Prompt(({"role": "user", "content": pair.prompt},), key, key, part), 0)
        for key, pair in ((_key(name, pair), pair) for name, pair in listed)
    ]
    # One prompt may be in several domains.
    asked = {request.key: request for request in requests}
    sampling = Sampling(OWN_TEMPERATURE, max_tokens=min(OWN_TOKENS, setup.max_tokens), seed=setup.seed)
    made = generate(backbone, list(asked.values()), sampling, "the reference for the probe")
    texts = dict(zip(asked, made, strict=True))
    chosen = set(_coherent_prompts(part, listed, setup))
    for number, ((name, pair), request) in enumerate(zip(listed, requests, strict=True)):
        try:
            example, _ = encoded(texts[request.key], backbone, setup.max_tokens)
        except Unreadable:  # an empty answer teaches nothing
            continue
        # In training every other one, so that intact and corrupted answers stay about as many.
        judged = number in chosen and (part == "held_out" or number % 2 == 0)
        yield Labelled(example, part, name, _key(name, pair), "reference", "reference", judged)


def _key(name: str, pair: Pair) -> str:
    return f"{name}: {hashlib.sha256(pair.prompt.encode()).hexdigest()[:12]}"


def _coherent_prompts(
    part: Literal["train", "held_out"], listed: Sequence[tuple[str, Pair]], setup: Setup
) -> list[int]:
    """Whose answers are also read for coherence: in turn from all domains, so that none is what it means."""
    order = sorted(range(len(listed)), key=lambda number: (listed[number][1].index, number))
    return order[: COHERENT_PROMPTS[part]] if setup.coherence else []


def _of_part(
    part: Literal["train", "held_out"], pairs: dict[str, list[Pair]], setup: Setup, backbone: Backbone
) -> Iterator[Labelled]:
    listed = [(name, pair) for name, found in pairs.items() for pair in found]
    chosen = _coherent_prompts(part, listed, setup)
    place = {number: turn for turn, number in enumerate(chosen)}
    texts = [[_text(getattr(listed[number][1], side), backbone) for side in SIDES] for number in chosen]
    for number, (name, pair) in enumerate(listed):
        turn, key = place.get(number), _key(name, pair)
        # In training one answer of a prompt, in turn of either side: both count as intact alike.
        judged = (
            [] if turn is None else list(SIDES) if part == "held_out" else [SIDES[turn // len(KINDS) % 2]]
        )
        for side in SIDES:
            yield Labelled(getattr(pair, side), part, name, key, side, judged=side in judged)
        for shift, side in enumerate(judged):
            if turn is None or not _one_turn(getattr(pair, side)):
                continue  # of several turns, which a copy would run together
            others = [text for other, both in enumerate(texts) if other != turn for text in both]
            kind, own = KINDS[(turn + 2 * shift) % len(KINDS)], texts[turn][SIDES.index(side)]
            made = corrupt(own, kind, others, setup.seed, f"{key} {side}")
            if made is not None:
                example = _with_text(getattr(pair, side), made, backbone, setup.max_tokens)
                yield Labelled(example, part, name, key, side, kind, judged=True)


def _span(example: Example, backbone: Backbone) -> tuple[int, int, int]:
    """Where the answer starts, where the special tokens begin that end it, and where it ends."""
    special, start = set(backbone.tokenizer.all_special_ids), example.answer.index(True)
    last = len(example.answer) - example.answer[::-1].index(True)
    end = last
    while end > start and example.ids[end - 1] in special:
        end -= 1
    return start, end, last


def _one_turn(example: Example) -> bool:
    start = example.answer.index(True)
    return sum(example.answer) == len(example.answer) - example.answer[::-1].index(True) - start


def _text(example: Example, backbone: Backbone) -> str:
    start, end, _ = _span(example, backbone)
    return str(backbone.tokenizer.decode(example.ids[start:end]))


def _with_text(example: Example, text: str, backbone: Backbone, most: int) -> Example:
    """The same prompt with another answer."""
    start, end, last = _span(example, backbone)
    body = list(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = [*example.ids[:start], *body, *example.ids[end:last]][:most]
    return Example(ids, [place >= start for place in range(len(ids))], example.where, example.prompt)
