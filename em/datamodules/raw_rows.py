"""Unchecked rows of JSONL files and hub datasets, each with the place that an error names."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em.config.data_files import DATA_VARIABLE, find, places
from em.config.schema import CorpusConfig, SourceConfig
from em.errors import DataError


def locate(path: str, root: str | None, folders: bool = False) -> Path:
    """A data file (with `folders` or a folder), below `root` or else EM_DATA, or in the working directory.

    Raises:
        DataError: it is in none of them.
    """
    found = find(path, root, folders)
    if found is not None:
        return found
    hint = (
        "" if os.environ.get(DATA_VARIABLE) else f"; {DATA_VARIABLE} is not set: point it at your data folder"
    )
    raise DataError(f"no data file {path} (looked for {', '.join(map(str, places(path, root)))}){hint}")


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """`file:line` and the JSON value of every line that is not blank; a `DataError` where it is not JSON.

    Raises:
        DataError: the file is damaged.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    where = f"{path.name}:{number}"
                    yield where, _parse(line, where)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); is it complete, and gzip if it ends in .gz?"
        ) from error


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return DataError(f"{where}: not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of 5000 digits; brackets nested 1000 deep
        return DataError(f"{where}: not JSON that can be read ({error})")


def hub_rows(source: SourceConfig | CorpusConfig) -> Iterator[tuple[str, Any]]:
    """`dataset:number` and the row, for every row of a split of a hub dataset.

    Raises:
        DataError: the package datasets is missing, or the dataset cannot be reached or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("hub datasets need the package datasets: pip install datasets") from error
    options = {"streaming": source.streaming} if isinstance(source, CorpusConfig) else {}
    try:
        table = datasets.load_dataset(source.hub, source.name, split=source.split, **options)
        # A streamed dataset meets most of its problems only here.
        for number, row in enumerate(table, 1):
            yield f"{source.hub}:{number}", row
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        first = (str(error).strip().splitlines() or ["unknown error"])[0]
        raise DataError(f"hub dataset {source.hub} ({source.split}): cannot be loaded: {first}") from error
