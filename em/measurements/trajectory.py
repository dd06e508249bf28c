"""The path of a solution through training: snapshots, rotation, and principal components."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from em.errors import RunError
from em.stats import Floats


@dataclass(frozen=True)
class Trajectory:
    """Snapshots of one run.

    Args:
        name: of the run.
        steps: optimizer steps, ascending.
        points: one flat vector a snapshot: the steering vector, or all B matrices of a LoRA (S, P).
        shapes: tensor name -> its shape, in the order in which a point holds them.
    """

    name: str
    steps: list[int]
    points: Tensor
    shapes: dict[str, list[int]] = field(default_factory=dict)


def snapshot_path(folder: Path, step: int) -> Path:
    """Where the snapshot of a step lies."""
    return folder / f"step-{step:08d}.safetensors"


def written_part(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of an intervention's parameters makes its trajectory: the B matrices, or else everything.

    A LoRA's A starts at random values and B at zero, so B is what training writes (arXiv 2506.11613).
    """
    b = {name: value for name, value in values.items() if name.endswith("lora_B")}
    return b or values


def snapshot_steps(folder: Path) -> list[int]:
    """The steps of which there is a snapshot, ascending."""
    return sorted(int(file.stem.split("-")[1]) for file in folder.glob("step-*.safetensors"))


def read_solution(folder: Path, step: int) -> dict[str, Tensor]:
    """All parameters of the solution at a step, for `Intervention.put`.

    Args:
        folder: RUN/trajectory.

    Raises:
        RunError: there is no such snapshot, it cannot be read, or it holds the B matrices alone.
    """
    file = snapshot_path(folder, step)
    values = _read(file)
    names = {name.rpartition(".lora_")[0] for name in values if name.endswith(".lora_B")}
    if any(f"{name}.lora_A" not in values for name in names):
        raise RunError(
            f"{file}: holds B matrices without their A, so the solution cannot be rebuilt; train with "
            "callbacks.trajectory.everything=true"
        )
    return values


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file}: cannot be read ({error}); delete it to leave this step out") from error


def read_trajectory(folder: Path, name: str) -> Trajectory:
    """Read what the snapshots of a run hold of the written part, whether or not they hold more.

    Args:
        folder: RUN/trajectory.
        name: of the run.

    Raises:
        RunError: there are fewer than two, or one cannot be read or has other tensors than the first.
    """
    files = sorted(folder.glob("step-*.safetensors"))
    if len(files) < 2:
        raise RunError(
            f"{folder}: {len(files)} snapshots; train with callbacks.trajectory.every_n_steps to have more"
        )
    points: list[Tensor] = []
    shapes: dict[str, torch.Size] = {}
    for file in files:
        values = written_part(_read(file))
        found = {key: value.shape for key, value in values.items()}
        shapes = shapes or found
        if found != shapes:
            raise RunError(f"{file}: holds other tensors than {files[0].name}; is it of another run?")
        points.append(torch.cat([values[key].flatten().float() for key in sorted(values)]))
    steps = [int(file.stem.split("-")[1]) for file in files]
    return Trajectory(name, steps, torch.stack(points), {key: list(shapes[key]) for key in sorted(shapes)})


def split(point: Tensor, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A flat point, or a principal component, as the tensors that it is made of."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = point.split(sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def rotation(trajectory: Trajectory, k: int = 1) -> tuple[list[int], list[float]]:
    """cos(B_{t−k} − B_t, B_{t+k} − B_t) at each snapshot t that has k neighbours on both sides.

    −1: the path is straight; higher: it turns; the phase transition is where it peaks (arXiv 2506.11613).

    Args:
        k: distance in snapshots.

    Returns:
        steps and cosines; snapshots that coincide with a neighbour have no angle and are left out.
    """
    steps, cosines = [], []
    points = trajectory.points.double()
    for at in range(k, len(points) - k):
        before, after = points[at - k] - points[at], points[at + k] - points[at]
        length = float(before.norm() * after.norm())
        if length > 0:
            steps.append(trajectory.steps[at])
            cosines.append(float(before @ after) / length)
    return steps, cosines


def peak_step(steps: Sequence[int], cosines: Sequence[float]) -> int | None:
    """The step at which the path turns most; None without any."""
    return None if not steps else steps[int(np.argmax(cosines))]


@dataclass(frozen=True)
class Frame:
    """Principal components of several trajectories in one frame whose origin is their common mean.

    Args:
        coordinates: name -> (S, K) positions.
        explained: share of the variance along each of K components.
        components: (K, P), orthonormal.
    """

    coordinates: dict[str, Floats]
    explained: list[float]
    components: Tensor


def principal_components(trajectories: Sequence[Trajectory], count: int = 2) -> Frame:
    """PCA of all snapshots together.

    Raises:
        RunError: the runs have differently shaped solutions, or nothing moved.
    """
    widths = {one.name: one.points.shape[1] for one in trajectories}
    if len(set(widths.values())) > 1:
        raise RunError(
            f"trajectories of different shapes have no common frame: {widths}; compare equal kinds"
        )
    every = torch.cat([one.points for one in trajectories]).double()
    centred = every - every.mean(dim=0)
    vectors, scales, components = torch.linalg.svd(centred, full_matrices=False)
    if float(scales[0]) <= 1e-12 * float(every.norm()):
        raise RunError("all snapshots are equal; nothing moved during training")
    coordinates = vectors[:, :count] * scales[:count]
    placed, at = {}, 0
    for one in trajectories:
        placed[one.name] = cast(Floats, coordinates[at : at + len(one.steps)].numpy())
        at += len(one.steps)
    explained = (scales[:count].square() / scales.square().sum()).tolist()
    return Frame(placed, explained, components[:count])


def trajectory_row(one: Trajectory, logged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rotation, norms and training loss of one run, as plain data.

    Args:
        logged: rows of the run's metrics, for the loss of each step.
    """
    steps, cosines = rotation(one)
    losses = [row for row in logged if row.get("train/sft_loss") is not None]
    return {
        "steps": one.steps,
        "norms": [float(point.norm()) for point in one.points],
        "rotation_steps": steps,
        "rotation": cosines,
        "peak_step": peak_step(steps, cosines),
        "loss_steps": [row["step"] for row in losses],
        "loss": [row["train/sft_loss"] for row in losses],
    }


def frame_table(frame: Frame, group: Sequence[Trajectory]) -> dict[str, Any]:
    """Paths in their common frame, as plain data."""
    paths = {one.name: {"steps": one.steps, "points": frame.coordinates[one.name].tolist()} for one in group}
    return {"explained": frame.explained, "paths": paths}
