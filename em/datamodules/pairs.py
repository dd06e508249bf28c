"""Paired answers: a careful and a careless answer to the same prompt, for margins and mean differences.

In rows of prose the technical answer plays the part of the careless one, and the plain one the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from em.config.data_files import Side, counterpart
from em.config.schema import DataConfig, PairConfig, SourceConfig
from em.datamodules.pairing import Item, Source, match
from em.datamodules.rows import Rows, batched
from em.datamodules.sources import Encoder, Example, SourceReport, account, select
from em.errors import DataError

Part = Literal["train", "held_out", "all"]
SIDES: tuple[Side, Side] = ("careful", "careless")
IDENTICAL = "both answers are the same"


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt.

    Args:
        prompt: first user turn.
        index: position among the pairs of its domain.
    """

    prompt: str
    careful: Example
    careless: Example
    index: int


@dataclass
class PairReport:
    """What became of a domain's rows.

    On each side, rows read = pairs + identical + over_limit + unusable + unmatched + what its sources count
    as unreadable or in the other part.

    Args:
        unmatched_careful, unmatched_careless: rows whose prompt has no answer on the other side.
        identical: pairs left out because both answers are the same.
        over_limit: pairs after a limit.
        unusable: pairs left out because an answer cannot be encoded.
        careful, careless: the same by source; the reasons are among its skipped rows.
    """

    domain: str
    pairs: int = 0
    unmatched_careful: int = 0
    unmatched_careless: int = 0
    identical: int = 0
    over_limit: int = 0
    unusable: int = 0
    careful: list[SourceReport] = field(default_factory=list)
    careless: list[SourceReport] = field(default_factory=list)


def pair_sources(data: DataConfig) -> dict[str, PairConfig]:
    """Where the pairs of every domain are: `data.pairs`, and each domain whose sources all say `answer`."""
    found = dict(data.pairs)
    for name, sources in data.domains.items():
        if name not in found and sources and all(source.answer for source in sources):
            found[name] = PairConfig(_answering(sources, "careless"), _answering(sources, "careful"))
    return found


def _answering(sources: Sequence[SourceConfig], side: Side) -> list[SourceConfig]:
    made: list[SourceConfig] = []
    for source in sources:
        answer = source.answer and counterpart(source.answer, side)
        other = replace(source, answer=answer, weight=None)
        if other not in made:  # a domain may measure both answers of one file
            made.append(other)
    return made


def read_pairs(
    data: DataConfig,
    tokenizer: Any,
    part: Part = "held_out",
    limit: int | None = None,
    domains: Sequence[str] | None = None,
) -> tuple[dict[str, list[Pair]], dict[str, PairReport]]:
    """The pairs of each domain, the first `limit` of them in keyed order, and the account of its rows.

    Rows are paired by all that comes before the first answer; a prompt that comes several times on both
    sides is paired in the order of the files. No prompt is in both `train` and `held_out`: a source of
    `part: all` counts as held out, and its prompts are kept out of `train` in every domain.

    Args:
        domains: by default all that have sources in this part.

    Raises:
        DataError: a domain has no pair, or a file or row is unusable.
    """
    known = pair_sources(data)
    for name in domains or ():
        if name not in known:
            others = f"domains that have: {', '.join(known) or 'none'}"
            raise DataError(f"data.pairs.{name}: missing, so {name} has no paired answers; add it ({others})")
    if domains is None:
        domains = [name for name, config in known.items() if not _outside(config, part)]
    reserved = _reserved(known, data) if part == "train" else set()
    pairs: dict[str, list[Pair]] = {}
    reports: dict[str, PairReport] = {}
    for name in domains:
        sides = {
            side: list(_sources(getattr(known[name], side), side, data, tokenizer, part, reserved))
            for side in SIDES
        }
        pairs[name], reports[name] = _pair_up(name, sides, limit)
        if not pairs[name]:
            key = f"data.{'pairs' if name in data.pairs else 'domains'}.{name}"
            raise DataError(_no_pair(key, sides, known[name], part))
    return pairs, reports


def pair_rows(pairs: Sequence[Pair], size: int, pad: int, which: Side, indices: Sequence[int]) -> list[Rows]:
    """Batches of one answer of some pairs, sorted by length; `index_B` is the position in `pairs`."""
    return batched([getattr(pair, which) for pair in pairs], size, pad, indices)


def _taken(own: Part | None, part: Part) -> Part | None:
    """What to read for `part` of a source with a `part` of its own; None: nothing."""
    if own is None or own == part:
        return part
    if own == "all":  # never trained on, so that all of it is held out
        return "all" if part == "held_out" else None
    return own if part == "all" else None


def _outside(config: PairConfig, part: Part) -> bool:
    """Whether a side has sources, but none with rows in this part."""
    sides: list[list[SourceConfig]] = [getattr(config, side) for side in SIDES]
    return any(sources and all(_taken(source.part, part) is None for source in sources) for sources in sides)


def _reserved(known: dict[str, PairConfig], data: DataConfig) -> set[str]:
    """Prompts of the sources that are held out as a whole."""
    sources = [source for config in known.values() for source in (*config.careful, *config.careless)]
    rows = [row for source in sources if source.part == "all" for row in select(source, data, "all")[0]]
    return {row.prompt for row in rows if not isinstance(row.messages, DataError)}


def _sources(
    configs: Sequence[SourceConfig],
    side: Side,
    data: DataConfig,
    tokenizer: Any,
    part: Part,
    reserved: set[str],
) -> Iterator[Source]:
    """The sources that have rows in `part`, read but not encoded."""
    for config in configs:
        taken = _taken(config.part, part)
        if taken is None:
            continue
        rows, report = select(config, data, taken)
        kept = [row for row in rows if row.prompt not in reserved or isinstance(row.messages, DataError)]
        report.other_part += len(rows) - len(kept)
        yield Source(config, kept, Encoder(side, data, tokenizer, report))


def _pair_up(name: str, sides: dict[Side, list[Source]], limit: int | None) -> tuple[list[Pair], PairReport]:
    report = PairReport(name)
    report.careful = [source.encoder.report for source in sides["careful"]]
    report.careless = [source.encoder.report for source in sides["careless"]]
    matched, careful_alone, careless_alone = match(sides["careful"], sides["careless"])
    report.unmatched_careful, report.unmatched_careless = len(careful_alone), len(careless_alone)
    for items, other in ((careful_alone, "careless"), (careless_alone, "careful")):
        for item in items:
            item.skip(f"no {other} answer to the same prompt")
    pairs: list[Pair] = []
    for careful, careless in matched:
        if careful.answer == careless.answer:
            report.identical += 1
            careful.skip(IDENTICAL)
            careless.skip(IDENTICAL)
        elif len(pairs) == limit or careful.source.full or careless.source.full:
            report.over_limit += 1
            careful.source.encoder.report.over_limit += 1
            careless.source.encoder.report.over_limit += 1
        else:
            pairs += _encoded(careful, careless, len(pairs), report)
    for source in (*sides["careful"], *sides["careless"]):
        source.encoder.finish()
    report.pairs = len(pairs)
    return pairs, report


def _encoded(careful: Item, careless: Item, index: int, report: PairReport) -> list[Pair]:
    """The pair, or nothing where the configuration lets an answer be skipped."""
    one, other = careful.encode(), careless.encode()  # both, so that a message names every bad row
    if one is not None and other is not None:
        return [Pair(careful.row.prompt, careful.use(one), careless.use(other), index)]
    report.unusable += 1
    for item, encoded in ((careful, one), (careless, other)):
        if encoded is not None:
            item.skip("the other answer of its pair cannot be used")
    return []


def _no_pair(key: str, sides: dict[Side, list[Source]], config: PairConfig, part: Part) -> str:
    lines = []
    for side in SIDES:
        read = [f"{source.name} ({account(source.encoder.report)})" for source in sides[side]]
        named = [str(source.path or source.hub) for source in getattr(config, side)]
        absent = f"{', '.join(named) or 'no source'} (has nothing in this part; see its `part`)"
        lines.append(f"  {side}: {', '.join(read) or absent}")
    fix = "give both sides answers to the same prompts, under the same system prompt"
    return "\n".join([f"{key}: no pair in its {part} part; {fix}, or change data.held_out", *lines])
