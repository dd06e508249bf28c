"""Adapter-only checkpoints between optimizer steps, and a clean stop on SIGTERM or Ctrl-C."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import Checkpoint

from em.datamodules.rows import MicroBatch
from em.errors import Interrupted, RunError
from em.files import write_atomically
from em.progress import say


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there; reads tensors and plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda scratch: _dump(checkpoint, scratch))

    def load_checkpoint(
        self, path: _PATH, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError) as error:
            raise RunError(
                f"{path}: the checkpoint cannot be read ({error}); delete it to start the run anew"
            ) from error
        return loaded


def _dump(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        torch.save(checkpoint, path)
    except RuntimeError as error:  # torch's zip writer wraps a full disk in a RuntimeError
        raise OSError(getattr(error.__cause__, "errno", None) or 0, str(error).splitlines()[0]) from error


class CheckpointSaver(Checkpoint):
    """Saves every n optimizer steps and at the end; stops between steps when asked to.

    A first SIGTERM or Ctrl-C ends the current optimizer step, saves and raises `Interrupted`; a second
    one ends the process at once, and the last checkpoint stands.

    Args:
        path: the checkpoint file.
        every_n_steps: optimizer steps between checkpoints.
    """

    def __init__(self, path: Path, every_n_steps: int):
        self.path, self.every_n_steps = path, every_n_steps
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # After Lightning has set its own handlers: its SIGTERM handling would exit with status 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        say("stopping after this step and saving; once more stops at once, the last checkpoint stands")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: MicroBatch,
        batch_idx: int,
    ) -> None:
        if batch.micro + 1 < trainer.accumulate_grad_batches:
            return
        if not self._validates_now(trainer):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # After validation, so that a resumed run does not lose what early stopping saw.
        if not trainer.sanity_checking:
            self._save_if_due(trainer)

    def _validates_now(self, trainer: pl.Trainer) -> bool:
        interval = trainer.val_check_batch
        if trainer.enable_validation is False or not interval or interval == float("inf"):
            return False
        return (trainer.fit_loop.total_batch_idx + 1) % int(interval) == 0

    def _save_if_due(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        asked = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if asked or step % self.every_n_steps == 0 or step == trainer.max_steps:
            trainer.save_checkpoint(self.path)
        if asked:
            raise Interrupted(
                f"stopped after step {step}; its state is saved", self._signal or signal.SIGTERM
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()
        if self._signal is not None:  # it came while the final measurements ran; the last step is saved
            raise Interrupted("stopped after the last step; its state is saved", self._signal)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
