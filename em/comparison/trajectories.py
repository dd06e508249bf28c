"""Paths of the compared runs through training, from what their directories hold."""

from typing import Any

from em.comparison.study import Study
from em.errors import RunError
from em.measurements.trajectory import (
    Trajectory,
    peak_step,
    principal_components,
    read_trajectory,
    rotation,
)

Table = dict[str, Any]


def trajectories(study: Study) -> Table:
    """Rotation, norms, losses and a common frame of principal components; runs without snapshots say so."""
    found: dict[str, Trajectory] = {}
    missing: dict[str, str] = {}
    for name, record in study.records.items():
        try:
            found[name] = read_trajectory(record.directory.path / "trajectory", name)
        except RunError as error:
            missing[name] = str(error)
    rows: dict[str, Table] = {}
    for name, one in found.items():
        steps, cosines = rotation(one)
        norms = [float(point.norm()) for point in one.points]
        rows[name] = {
            "steps": one.steps,
            "norms": norms,
            "rotation_steps": steps,
            "rotation": cosines,
            "peak_step": peak_step(steps, cosines),
            **_losses(study, name),
        }
    return {"runs": rows, "missing": missing, "frames": _frames(found)}


def _losses(study: Study, name: str) -> Table:
    logged = [row for row in study.records[name].directory.read_metrics() if "train/sft_loss" in row]
    return {
        "loss_steps": [row["step"] for row in logged],
        "loss": [row["train/sft_loss"] for row in logged],
    }


def _frames(found: dict[str, Trajectory]) -> list[Table]:
    """One frame for all trajectories of one shape."""
    by_width: dict[int, list[Trajectory]] = {}
    for one in found.values():
        by_width.setdefault(one.points.shape[1], []).append(one)
    frames = []
    for group in by_width.values():
        frame = principal_components(group)
        frames.append(
            {
                "explained": frame.explained,
                "paths": {
                    one.name: {"steps": one.steps, "points": frame.coordinates[one.name].tolist()}
                    for one in group
                },
            }
        )
    return frames
