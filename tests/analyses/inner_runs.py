"""Tiny runs whose snapshots are then planted, and what an analysis of them gets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from em import runs
from em.analyses.base import Analysis, Context, Found
from em.backbone import Backbone
from em.config.schema import CompareConfig
from em.figures.draw import draw
from em.measurements.trajectory import snapshot_path
from tests.comparison.trained import SMALL

EVERY_STEP = {"trajectory": {"everything": True, "at": ["start", "end"], "every_n_steps": 1}}


def context(found: Mapping[str, Path], folder: Path, backbone: Backbone, **changes: Any) -> Context:
    records = {name: runs.read(path) for name, path in found.items()}
    return Context(
        records, {"lost": "its training failed"}, folder, CompareConfig(**{**SMALL, **changes}), backbone
    )


def plant(run: Path, snapshots: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Make these the only snapshots of a run."""
    folder = run / "trajectory"
    for file in folder.glob("*.safetensors"):
        file.unlink()
    for step, values in snapshots.items():
        save_file({name: value.contiguous() for name, value in values.items()}, snapshot_path(folder, step))


def stored(raw: dict[str, Any]) -> Any:
    """What is read back of a measurement that was written as JSON."""
    return json.loads(json.dumps(raw, allow_nan=False))


def drawn(found: Found) -> list[str]:
    """Draw all figures; their ids."""
    for figure in found.figures:
        assert "<svg" in draw(figure, {}).file and figure.alternative()
    return [figure.id for figure in found.figures]


def both(analysis: Analysis, given: Context) -> tuple[Any, Found]:
    """The stored measurement and what is read from it; figures can be drawn, and reading changes nothing."""
    raw = stored(analysis.measure(given))
    kept = json.dumps(raw)
    found = analysis.read(raw)
    drawn(found)
    assert json.dumps(raw) == kept
    return raw, found
