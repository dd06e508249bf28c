"""The path of the solution through training: what it writes, or all of it, saved at many steps."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from em.callbacks._sinks import drop_later
from em.callbacks.base import MeasurementCallback, RunContext
from em.errors import RunError
from em.files import write_tensors
from em.interventions.base import read_tensors
from em.measurements import trajectory as paths
from em.progress import say

LARGE = 100e6  # bytes of a snapshot


class Trajectory(MeasurementCallback):
    """Saves the B matrices of a LoRA, or all parameters of another kind (arXiv 2506.11613).

    When: by its schedule; before the first, after the last and after each 5th optimizer step if none is
    given. What an interrupted attempt saved of later steps is removed when the run goes on.

    Logged:
        trajectory/norm: Frobenius norm of the B matrices, or of all parameters of another kind.
        trajectory/rotation: cos(B[t−1] − B[t], B[t+1] − B[t]) of the last three snapshots, so about the one
            before the step it is logged at; −1: straight. From the third snapshot on, and only if no two of
            them are equal.
    Written: trajectory/step-XXXXXXXX.safetensors, which `python -m em compare` reads. A full finetune saves
    the whole model each time.

    Args:
        everything: save the A matrices of a LoRA too, so that the solution can be rebuilt at every step.
    """

    def __init__(self, *, everything: bool = False, **schedule: Any):
        if schedule.get("at") is None and schedule.get("every_n_steps") is None:
            schedule |= {"at": ["start", "end"], "every_n_steps": 5}
        super().__init__(**schedule)
        self.everything = everything
        self._told = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.run is not None
        drop_later(self.run.path / "trajectory", trainer.global_step)
        super().on_train_start(trainer, pl_module)

    def measure(self, context: RunContext) -> dict[str, float]:
        values = context.intervention.gathered()
        if context.rank:
            return {}
        written = paths.written_part(values)
        saved = values if self.everything else written
        folder = context.run.path / "trajectory"
        self._tell_size(saved)
        write_tensors(paths.snapshot_path(folder, context.step), saved)
        if context.when == "end":
            self._show(context, folder)
        squares = (float(value.double().pow(2).sum()) for value in written.values())
        return {"norm": math.fsum(squares) ** 0.5, **_rotation(folder)}

    def _tell_size(self, saved: dict[str, torch.Tensor]) -> None:
        """Once, where snapshots may fill a disk."""
        size = sum(value.nbytes for value in saved.values())
        if size > LARGE and not self._told:
            self._told = True
            say(
                f"trajectory: each snapshot takes {size / 1e6:.0f} MB; a larger every_n_steps needs less disk"
            )

    def _show(self, context: RunContext, folder: Path) -> None:
        """Table and figures of the whole path; a run of one snapshot, or that never moved, has none."""
        try:
            path = paths.read_trajectory(folder, context.solution)
            frames = [paths.frame_table(paths.principal_components([path]), [path])]
        except RunError as error:
            say(f"{self.name}: no figure: {error}")
            return
        row = paths.trajectory_row(path, context.run.read_metrics())
        table = {"step": context.step, "runs": {path.name: row}, "missing": {}, "frames": frames}
        context.save_table(self.name, table)
        context.show("trajectory", table)


def _rotation(folder: Path) -> dict[str, float]:
    """At the middle one of the last three snapshots."""
    files = sorted(folder.glob("step-*.safetensors"))[-3:]
    if len(files) < 3:
        return {}
    points = []
    for file in files:
        values = paths.written_part(read_tensors(file))
        points.append(torch.cat([values[name].flatten().float() for name in sorted(values)]))
    _, cosines = paths.rotation(paths.Trajectory(folder.parent.name, [0, 1, 2], torch.stack(points)))
    return {"rotation": cosines[0]} if cosines else {}
