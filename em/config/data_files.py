"""Where the data of a configuration comes from: its lists of sources, and the folders that are searched."""

import os
from collections.abc import Iterator
from pathlib import Path

from em.config.schema import Config, CorpusConfig, SourceConfig

DATA_VARIABLE = "EM_DATA"


def source_lists(config: Config) -> Iterator[tuple[str, list[SourceConfig]]]:
    """Every list of sources with its key."""
    yield "data.train", config.data.train
    yield "data.kl", config.data.kl
    for name, sources in config.data.domains.items():
        yield f"data.domains.{name}", sources
    for name, pair in config.data.pairs.items():
        yield f"data.pairs.{name}.careless", pair.careless
        yield f"data.pairs.{name}.careful", pair.careful


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
