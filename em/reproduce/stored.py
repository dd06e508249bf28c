"""What an analysis measured, kept so that a figure is drawn again without measuring."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from em.analyses.base import Analysis, Context, Raw
from em.comparison.study import study_key
from em.config.schema import Component
from em.errors import RunError
from em.files import write_json
from em.runs import RunRecord

RAW, RECORD = "raw.json", "record.json"


@dataclass(frozen=True)
class Stored:
    """Numbers of one analysis.

    Args:
        seconds: that measuring took.
    """

    raw: Raw
    seconds: float


def measured(name: str, options: Component, analysis: Analysis, context: Context) -> Stored:
    """What the analysis measured, now or earlier on the same runs with the same options.

    Raises:
        EmError: it cannot be measured.
    """
    records = {one: context.records[one] for one in analysis.members if one in context.records}
    key = _key(options, context, records)
    before = read_stored(context.folder)
    if before is not None and _record(context.folder)["key"] == key:
        return before
    began = time.monotonic()
    context.folder.mkdir(parents=True, exist_ok=True)
    (context.folder / RECORD).unlink(missing_ok=True)  # half of the new would pass for the old
    raw = analysis.measure(context)
    seconds = round(time.monotonic() - began, 2)
    write_json(context.folder / RAW, raw)
    write_json(context.folder / RECORD, {"name": name, "key": key, "seconds": seconds, "options": options})
    return Stored(raw, seconds)


def read_stored(folder: Path) -> Stored | None:
    """What was measured into a folder, or None.

    Raises:
        RunError: it is damaged.
    """
    if not (folder / RECORD).is_file():
        return None
    return Stored(_read(folder / RAW), float(_record(folder)["seconds"]))


def _record(folder: Path) -> Raw:
    return _read(folder / RECORD)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); delete {path.parent} to measure it again"
        ) from error


def _key(options: Component, context: Context, records: Mapping[str, RunRecord]) -> str:
    """Changes with the options, the sizes, the runs and what they answered."""
    told: dict[str, Any] = {"options": options, "compare": asdict(context.compare)}
    if records:
        first = next(iter(records.values()))
        told["runs"] = study_key(list(records.values()), context.compare, first.config.data)
        told["members"] = list(records)
    told["missing"] = sorted(set(context.missing) & set(options.get("members") or ()))
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
