"""Match the rows of two sides by what comes before the answer, before anything is encoded."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from em.chat import Encoded
from em.config.schema import SourceConfig
from em.datamodules.sources import Encoder, Example, Row
from em.errors import DataError

Turns = tuple[tuple[str, str], ...]


@dataclass
class Source:
    """The rows of one source on one side, in keyed order, and the account of what becomes of them."""

    config: SourceConfig
    rows: list[Row]
    encoder: Encoder

    @property
    def name(self) -> str:
        return str(self.config.path or self.config.hub)

    @property
    def full(self) -> bool:
        return self.config.limit is not None and self.encoder.report.used >= self.config.limit


@dataclass(frozen=True)
class Item:
    """A row to be paired.

    Args:
        before, answer: its turns up to the first answer, and from there on.
        place: row in keyed order, then number of the source, so that a limit takes sources in turn.
    """

    row: Row
    source: Source
    before: Turns
    answer: Turns
    place: tuple[int, int]

    def encode(self) -> Encoded | None:
        return self.source.encoder.encode(self.row)

    def use(self, encoded: Encoded) -> Example:
        return self.source.encoder.use(self.row, encoded)

    def skip(self, reason: str) -> None:
        self.source.encoder.skip(reason)


def match(
    careful: Sequence[Source], careless: Sequence[Source]
) -> tuple[list[tuple[Item, Item]], list[Item], list[Item]]:
    """(careful, careless) rows in the keyed order of the careless ones, and the rows of each left over."""
    waiting: dict[Turns, deque[Item]] = defaultdict(deque)
    for item in _items(careful):
        waiting[item.before].append(item)
    matched, alone = [], []
    for item in _items(careless):
        others = waiting[item.before]
        if others:
            matched.append((others.popleft(), item))
        else:
            alone.append(item)
    matched.sort(key=lambda pair: pair[1].place)
    return matched, [item for items in waiting.values() for item in items], alone


def _items(sources: Sequence[Source]) -> list[Item]:
    """The rows in the order of the files; one without an answer goes to the account of its source."""
    found = []
    for number, source in enumerate(sources):
        places = {id(row): place for place, row in enumerate(source.rows)}
        for row in sorted(source.rows, key=lambda row: row.line):
            before, answer = ((), ()) if isinstance(row.messages, DataError) else _turns(row.messages)
            if answer:
                found.append(Item(row, source, before, answer, (places[id(row)], number)))
            else:
                source.encoder.encode(row)  # refuses it
    return found


def _turns(messages: Sequence[dict[str, Any]]) -> tuple[Turns, Turns]:
    """(role, content) of the turns before the first answer, and from it on."""
    turns = tuple((str(message.get("role")), str(message.get("content"))) for message in messages)
    first = next((number for number, (role, _) in enumerate(turns) if role == "assistant"), len(turns))
    return turns[:first], turns[first:]
