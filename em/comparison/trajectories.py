"""Paths of the compared runs through training, from what their directories hold."""

from typing import Any

from em.comparison.study import Study
from em.errors import RunError
from em.interventions.direction import Direction
from em.measurements.directions import as_direction
from em.measurements.trajectory import (
    Frame,
    Trajectory,
    frame_table,
    principal_components,
    read_trajectory,
    split,
    trajectory_row,
)

Table = dict[str, Any]


def trajectories(study: Study) -> tuple[Table, dict[str, Direction]]:
    """Rotation, norms, losses and a common frame of principal components; runs without snapshots say so.

    Also the first principal component of each frame, as a direction.
    """
    found: dict[str, Trajectory] = {}
    missing: dict[str, str] = {}
    for name, record in study.records.items():
        try:
            found[name] = read_trajectory(record.directory.path / "trajectory", name)
        except RunError as error:
            missing[name] = str(error)
    rows = {
        name: trajectory_row(one, study.records[name].directory.read_metrics()) for name, one in found.items()
    }
    frames, directions = [], {}
    for group in _shapes(found):
        try:
            frame = principal_components(group)
        except RunError as error:
            missing |= {one.name: str(error) for one in group}
            continue
        frames.append(frame_table(frame, group))
        direction = _first_component(study, frame, group)
        if direction is not None:
            directions[f"path-{group[0].name}"] = direction
    return {"runs": rows, "missing": missing, "frames": frames}, directions


def _shapes(found: dict[str, Trajectory]) -> list[list[Trajectory]]:
    """Trajectories that fit into one frame, together."""
    groups: dict[str, list[Trajectory]] = {}
    for one in found.values():
        groups.setdefault(repr(one.shapes), []).append(one)
    return list(groups.values())


def _first_component(study: Study, frame: Frame, group: list[Trajectory]) -> Direction | None:
    parts = split(frame.components[0], group[0].shapes)
    options = study.records[group[0].name].config.intervention
    if set(parts) == {"vector"}:  # of a steering vector, which is called after its site elsewhere
        parts = {f"{options['layer']}.{options.get('point', 'mlp')}": parts["vector"]}
    origin = {
        "kind": "principal-component",
        "what": "first principal component of training trajectories",
        "runs": [str(study.records[one.name].directory.path) for one in group],
        "explained": frame.explained[0],
        "backbone": study.backbone.describe(),
    }
    names = ", ".join(one.name for one in group)
    return as_direction(parts, study.backbone.hidden_size, f"path of {names}", origin)
