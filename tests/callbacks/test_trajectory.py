"""Trajectory: the table and figures of the end are those of the saved snapshots."""

import pytest

from em.measurements.trajectory import read_trajectory, rotation
from em.runs import RunDirectory


def test_table_and_figures(measured: RunDirectory) -> None:
    path = read_trajectory(measured.path / "trajectory", "measured")
    table = measured.read_table("trajectory")
    row = table["runs"]["measured"]
    assert row["steps"] == path.steps == [0, 2, 4]
    assert (row["rotation_steps"], row["rotation"]) == rotation(path)
    assert row["norms"] == pytest.approx([float(point.norm()) for point in path.points])
    assert row["loss_steps"] == [1, 2, 3, 4] and all(loss > 0 for loss in row["loss"])
    points = table["frames"][0]["paths"]["measured"]["points"]
    assert len(points) == 3 and sum(table["frames"][0]["explained"]) == pytest.approx(1.0)
    names = {file.name for file in (measured.path / "figures").iterdir()}
    assert {"rotation.svg", "trajectory.svg", "trajectory.png", "trajectory-loss.svg"} <= names
