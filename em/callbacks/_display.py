"""Shows the training progress."""

from typing import Any

import lightning.pytorch as pl

from em.datamodules.rows import MicroBatch
from em.modules.sft import SFTModule
from em.progress import Task


class Display(pl.Callback):
    """A progress display over optimizer steps with the current losses and an estimate.

    Args:
        name: shown in front.
    """

    def __init__(self, name: str):
        self._name = name
        self._task: Task | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SFTModule)
        self._task = Task(f"{self._name}: step", pl_module.steps, trainer.global_step)
        self._task.__enter__()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: MicroBatch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, SFTModule)
        if self._task is None or batch.micro + 1 < pl_module.accumulate:
            return
        metrics = pl_module.step_metrics
        status = f"loss {metrics['train/sft_loss']:.3f}"
        if "train/kl" in metrics:
            status += f"  kl {metrics['train/kl']:.4f}"
        self._task.advance(status=status)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close(None)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        if self._task is not None:
            self._task.__exit__(type(error) if error else None, error, None)
            self._task = None
