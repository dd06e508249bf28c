"""Keep what was measured of a solution until its comparison is done, so that an interrupted one goes on."""

import hashlib
import json
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from em.comparison.measured import Measured
from em.files import write_tensors
from em.interventions.direction import parse_site
from em.measurements.activations import Moments
from em.measurements.efficiency import Efficiency
from em.measurements.margins import PairLosses
from em.measurements.significance import Significance
from em.measurements.stability import Stability

SECTIONS: dict[str, type] = {"efficiency": Efficiency, "stability": Stability, "significance": Significance}


class Kept:
    """A folder with one file for each measured solution, removed when the comparison is written.

    Args:
        out: folder of the comparison.
        key: of the study; what another study has kept is not used.
    """

    def __init__(self, out: Path, key: str):
        self.folder = out / ".measured"
        self.key = key

    def read(self, name: str) -> Measured | None:
        """What was kept of a solution, without its update; None: nothing usable."""
        try:
            with safe_open(self._path(name), framework="pt") as file:
                record = json.loads((file.metadata() or {}).get("em", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a mapping
        except (OSError, SafetensorError, ValueError):
            return None
        return _restore(tensors, record) if record.get("key") == self.key else None

    def write(self, name: str, measured: Measured) -> None:
        """Keep a solution's measurements.

        Raises:
            RunError: the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        record: dict[str, Any] = {"key": self.key, "missing": measured.missing}
        for section in SECTIONS:
            value = getattr(measured, section)
            if value is not None:
                record[section] = _flatten(section, value, tensors)
        record["margins"] = {
            domain: _flatten(f"margins/{domain}", losses, tensors)
            for domain, losses in measured.margins.items()
        }
        for group, moments in measured.moments.items():
            tensors[f"moments/{group}/counts"] = moments.counts
            for site, sums in moments.sums.items():
                tensors[f"moments/{group}/{site}"] = sums
        record["answers"] = {group: moments.answers for group, moments in measured.moments.items()}
        write_tensors(self._path(name), tensors, {"em": json.dumps(record)})

    def clear(self) -> None:
        """Remove everything that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        # Not the name itself: a/b and a-b would share a file, and a name may be too long for one.
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"


def _flatten(prefix: str, value: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Arrays of a dataclass into `tensors`, the rest as plain data."""
    assert is_dataclass(value)
    plain: dict[str, Any] = {}
    for one in fields(value):
        item = getattr(value, one.name)
        if isinstance(item, np.ndarray):
            # A copy: sections share arrays, and a safetensors file refuses tensors that share memory.
            tensors[f"{prefix}/{one.name}"] = torch.from_numpy(np.array(item, dtype=float, order="C"))
        else:
            plain[one.name] = item
    return plain


def _restore(tensors: dict[str, Tensor], record: dict[str, Any]) -> Measured:
    def made(kind: type, prefix: str, plain: dict[str, Any]) -> Any:
        names = [one.name for one in fields(kind)]
        arrays = {
            name: tensors[f"{prefix}/{name}"].numpy() for name in names if f"{prefix}/{name}" in tensors
        }
        return kind(**plain, **arrays)

    found = Measured(missing=record["missing"])
    for section, kind in SECTIONS.items():
        if section in record:
            setattr(found, section, made(kind, section, record[section]))
    for domain, plain in record["margins"].items():
        found.margins[domain] = made(PairLosses, f"margins/{domain}", plain)
    for group, answers in record["answers"].items():
        prefix = f"moments/{group}/"
        sums = {
            parse_site(key.removeprefix(prefix)): value
            for key, value in tensors.items()
            if key.startswith(prefix) and not key.endswith("/counts")
        }
        found.moments[group] = Moments(sums, tensors[f"{prefix}counts"], answers)
    return found
