"""Paths with known turns, known planes, and files that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from em.errors import RunError
from em.measurements.trajectory import (
    Trajectory,
    peak_step,
    principal_components,
    read_solution,
    read_trajectory,
    rotation,
    snapshot_path,
    snapshot_steps,
    written_part,
)


def path(points: list[list[float]] | Tensor, name: str = "run", every: int = 10) -> Trajectory:
    made = torch.as_tensor(points, dtype=torch.float32)
    return Trajectory(name, [every * number for number in range(len(made))], made)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 3), length=st.floats(0.01, 100))
def test_a_straight_path_gives_minus_one(seed: int, k: int, length: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    heading, start = torch.randn(2, 40, generator=generator)
    steps, cosines = rotation(path(start + length * torch.arange(8.0)[:, None] * heading), k)
    assert steps == [10 * number for number in range(k, 8 - k)]
    assert cosines == pytest.approx([-1.0] * len(steps), abs=1e-4)


def test_a_right_angle_gives_zero_and_a_reversal_one() -> None:
    corner = path([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]])
    assert rotation(corner) == ([10, 20, 30], pytest.approx([-1.0, 0.0, -1.0]))
    back = path([[0, 0], [1, 0], [2, 0], [1, 0], [0, 0]])
    assert rotation(back) == ([10, 20, 30], pytest.approx([-1.0, 1.0, -1.0]))
    assert rotation(corner, 2) == ([20], pytest.approx([0.0]))
    assert rotation(corner, 3) == ([], [])


def test_the_peak_is_where_the_path_turns_most() -> None:
    turning = path([[0, 0], [1, 0], [2, 0.2], [2, 1.2], [2, 2.2], [2.5, 3]])
    steps, cosines = rotation(turning)
    assert peak_step(steps, cosines) == 20
    assert peak_step([], []) is None


def test_snapshots_that_coincide_have_no_angle() -> None:
    assert rotation(path([[0.0], [0.0], [1.0], [2.0]])) == ([20], [-1.0])


def plane(seed: int = 0) -> tuple[Tensor, Tensor]:
    """An orthonormal frame (2, 50), and points in it whose first axis has the larger variance."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(50, 2, generator=generator))[0].T
    return frame, torch.randn(12, 2, generator=generator) * torch.tensor([5.0, 1.0])


def test_a_planted_plane_is_recovered() -> None:
    frame, points = plane()
    every = points @ frame + 3.0
    one, two = path(every[:7], "one"), path(every[7:], "two")
    found = principal_components([one, two])
    assert sum(found.explained) == pytest.approx(1.0) and found.explained[0] > found.explained[1]
    torch.testing.assert_close(found.components @ found.components.T, torch.eye(2).double())
    projected = frame.double().T @ frame.double() @ found.components.T
    torch.testing.assert_close(projected.T, found.components, rtol=1e-5, atol=1e-5)
    placed = np.concatenate([found.coordinates["one"], found.coordinates["two"]])
    assert [len(found.coordinates[name]) for name in ("one", "two")] == [7, 5]
    distances = np.linalg.norm(placed[:, None] - placed[None], axis=-1)
    expected = torch.cdist(points, points).numpy()
    assert distances == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert placed.mean(axis=0) == pytest.approx([0.0, 0.0], abs=1e-5), "the origin is the common mean"
    centred = every.double() - every.double().mean(dim=0)
    assert placed == pytest.approx((centred @ found.components.T).numpy(), abs=1e-5)


@pytest.mark.parametrize("points", [[[0.0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]], [[0.1, 2, 5], [7, 1, 1]]])
def test_a_straight_path_still_has_an_orthonormal_frame(points: list[list[float]]) -> None:
    found = principal_components([path(points)])
    assert found.explained == pytest.approx([1.0, 0.0], abs=1e-9)
    assert found.coordinates["run"].shape == (len(points), 2)
    assert found.coordinates["run"][:, 1] == pytest.approx(np.zeros(len(points)), abs=1e-6)
    torch.testing.assert_close(found.components @ found.components.T, torch.eye(2).double())


def test_runs_without_a_common_frame_are_refused() -> None:
    one = path(torch.zeros(3, 4), "one")
    with pytest.raises(RunError, match="different shapes .*'one': 4, 'two': 5.*compare equal kinds"):
        principal_components([one, path(torch.zeros(3, 5), "two")])


@pytest.mark.parametrize("count", [2, 3, 7])
def test_paths_that_do_not_move_are_refused(count: int) -> None:
    still = torch.randn(5, generator=torch.Generator().manual_seed(count)).expand(count, -1)
    with pytest.raises(RunError, match="nothing moved"):
        principal_components([path(still)])


def write(folder: Path, step: int, values: dict[str, Tensor] | None = None, **more: Tensor) -> None:
    folder.mkdir(exist_ok=True)
    save_file({**(values or {}), **more}, snapshot_path(folder, step))


def test_snapshots_are_read_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (1000, 5, 20):
        write(tmp_path, step, b=torch.full((2, 2), float(step)), a=torch.tensor([1.0, 2.0]))
    found = read_trajectory(tmp_path, "run")
    assert found.steps == [5, 20, 1000] and found.name == "run"
    assert found.points.tolist() == [[1.0, 2.0, *[float(step)] * 4] for step in (5, 20, 1000)]


def test_fewer_than_two_snapshots(tmp_path: Path) -> None:
    for count in range(2):
        with pytest.raises(
            RunError, match=rf"{tmp_path}.*: {count} snapshots; .*callbacks.trajectory.every_n_steps"
        ):
            read_trajectory(tmp_path / "none" if not count else tmp_path, "run")
        write(tmp_path, count, v=torch.ones(2))


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    write(tmp_path, 0, v=torch.ones(2))
    snapshot_path(tmp_path, 7).write_bytes(b"no tensors")
    with pytest.raises(RunError, match=r"step-00000007.safetensors: cannot be read .*delete it"):
        read_trajectory(tmp_path, "run")


@pytest.mark.parametrize("other", [{"v": torch.ones(3)}, {"w": torch.ones(2)}, {}])
def test_a_snapshot_with_other_tensors_is_named(tmp_path: Path, other: dict[str, Tensor]) -> None:
    write(tmp_path, 0, v=torch.ones(2))
    write(tmp_path, 7, **other)
    with pytest.raises(RunError, match=r"step-00000007.safetensors: holds other tensors than step-00000000"):
        read_trajectory(tmp_path, "run")


def test_a_loras_path_is_that_of_its_b_matrices() -> None:
    a, b, v = torch.ones(1), torch.ones(2), torch.ones(3)
    assert written_part({"x.lora_A": a, "x.lora_B": b, "y.lora_B": v}) == {"x.lora_B": b, "y.lora_B": v}
    assert written_part({"vector": v}) == {"vector": v}


def test_a_path_is_of_the_b_matrices_whatever_else_a_snapshot_holds(tmp_path: Path) -> None:
    for step in (0, 5):
        b, a = torch.full((2, 1), float(step)), torch.ones(1, 3)
        write(tmp_path, step, {"x.lora_B": b, "x.lora_A": a})
    found = read_trajectory(tmp_path, "run")
    assert found.points.tolist() == [[0.0, 0.0], [5.0, 5.0]] and found.shapes == {"x.lora_B": [2, 1]}
    assert snapshot_steps(tmp_path) == [0, 5]
    whole = read_solution(tmp_path, 5)
    assert {name: value.tolist() for name, value in whole.items()} == {
        "x.lora_B": [[5.0], [5.0]],
        "x.lora_A": [[1.0, 1.0, 1.0]],
    }


def test_a_solution_that_cannot_be_rebuilt_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 5, {"x.lora_B": torch.ones(2, 1)})
    with pytest.raises(RunError, match=r"step-00000005.* without their A.*callbacks.trajectory.everything"):
        read_solution(tmp_path, 5)
    with pytest.raises(RunError, match=r"step-00000007.safetensors: cannot be read"):
        read_solution(tmp_path, 7)
    write(tmp_path, 9, vector=torch.ones(2))
    assert read_solution(tmp_path, 9)["vector"].tolist() == [1.0, 1.0]
