"""Where the data of a configuration comes from: its lists of sources, and the folders that are searched."""

import os
from collections.abc import Iterator
from pathlib import Path

from em.config.schema import Config, SourceConfig

DATA_VARIABLE = "EM_DATA"


def source_lists(config: Config) -> Iterator[tuple[str, list[SourceConfig]]]:
    """Every list of sources with its key."""
    yield "data.train", config.data.train
    yield "data.kl", config.data.kl
    for name, sources in config.data.domains.items():
        yield f"data.domains.{name}", sources


def places(path: str, root: str | None) -> list[Path]:
    """Where a data file may be, in order: below `root` or else EM_DATA, then the working directory."""
    given = Path(path).expanduser()
    if given.is_absolute():
        return [given]
    folder = root or os.environ.get(DATA_VARIABLE)
    roots = [Path(folder).expanduser().absolute()] if folder else []
    return list(dict.fromkeys(root / given for root in [*roots, Path.cwd()]))


def find(path: str, root: str | None) -> Path | None:
    """The first of `places` that is a file."""
    return next((place for place in places(path, root) if place.is_file()), None)
