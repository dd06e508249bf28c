"""Where the data of a configuration comes from: its lists of sources, and the folders that are searched."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from em.config.schema import Config, CorpusConfig, SourceConfig

Side = Literal["careful", "careless"]
Answer = Literal["careful", "careless", "plain", "technical"]

DATA_VARIABLE = "EM_DATA"
# Kinds of paired rows: which of their answers plays the part of careless (what is trained towards), which
# that of careful.
KINDS: dict[str, dict[Side, Answer]] = {
    "advice": {"careless": "careless", "careful": "careful"},
    "prose": {"careless": "technical", "careful": "plain"},
}


def source_lists(config: Config) -> Iterator[tuple[str, list[SourceConfig]]]:
    """Every list of sources with its key."""
    yield "data.train", config.data.train
    yield "data.kl", config.data.kl
    for name, sources in config.data.domains.items():
        yield f"data.domains.{name}", sources
    for name, pair in config.data.pairs.items():
        yield f"data.pairs.{name}.careless", pair.careless
        yield f"data.pairs.{name}.careful", pair.careful


def kind(answer: Answer) -> str:
    """What a paired row with this answer is: `advice` or `prose`."""
    return next(name for name, answers in KINDS.items() if answer in answers.values())


def counterpart(answer: Answer, side: Side) -> Answer:
    """The answer that plays the part of `side` in rows of the same kind: of plain, careless is technical."""
    return KINDS[kind(answer)][side]


def corpora(config: Config) -> Iterator[tuple[str, CorpusConfig]]:
    """Every plain-text corpus, of callbacks and of the comparison, with its key."""
    for name, component in config.callbacks.items():
        for option, value in component.items():
            for index, item in enumerate(value if isinstance(value, list) else []):
                if isinstance(item, CorpusConfig):
                    yield f"callbacks.{name}.{option}[{index}]", item
    for index, item in enumerate(config.compare.corpus if config.compare else []):
        yield f"compare.corpus[{index}]", item


def places(path: str, root: str | None) -> list[Path]:
    """Where a data file may be, in order: below `root` or else EM_DATA, then the working directory."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return [given]
    folder = root or os.environ.get(DATA_VARIABLE)
    roots = [Path(folder).expanduser().absolute()] if folder else []
    return list(dict.fromkeys(root / given for root in [*roots, Path.cwd()]))


def find(path: str, root: str | None, folders: bool = False) -> Path | None:
    """The first of `places` that is a file, or with `folders` a file or folder."""
    found = (place for place in places(path, root) if place.is_file() or (folders and place.is_dir()))
    return next(found, None)
