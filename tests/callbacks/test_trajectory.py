"""Trajectory: the table and figures of the end are those of the saved snapshots."""

from pathlib import Path

import pytest
import torch

from em import experiment, runs
from em.config import check
from em.loading import load_backbone
from em.measurements.trajectory import read_solution, read_trajectory, rotation, snapshot_steps
from em.runs import RunDirectory
from tests.tiny import tiny_pairs


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


def test_with_everything_the_solution_is_rebuilt_and_the_path_is_the_same(tmp_path: Path) -> None:
    made = {}
    for name, options in (("some", {}), ("all", {"everything": True})):
        schedule = {"at": ["start", "end"], "every_n_steps": 2, **options}
        made[name] = experiment.train(
            check(tiny_pairs(tmp_path, name=name, callbacks={"trajectory": schedule}))
        )
    some, every = (read_trajectory(run.path / "trajectory", "run") for run in made.values())
    assert some.shapes == every.shapes and all(name.endswith("lora_B") for name in every.shapes)
    assert torch.equal(some.points, every.points)
    tables = [run.read_table("trajectory")["runs"][run.path.name] for run in made.values()]
    assert tables[0]["rotation"] == tables[1]["rotation"]
    logged = [[row.get("trajectory/norm") for row in run.read_metrics()] for run in made.values()]
    assert logged[0] == logged[1]

    folder = made["all"].path / "trajectory"
    assert snapshot_steps(folder) == [0, 2, 4]
    record = runs.read(made["all"].path)
    with record.adapted(load_backbone(record.config.backbone)) as intervention:
        final = intervention.gathered()
        intervention.put(read_solution(folder, 0))
        assert intervention.norm() == 0
        intervention.put(read_solution(folder, 4))
        assert all(torch.equal(final[name], value) for name, value in intervention.gathered().items())
