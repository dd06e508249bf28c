"""The Lightning Trainer of a configuration."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import ModelParallelStrategy

from em.building import Experiment, world_size
from em.callbacks._checkpoint import AtomicCheckpointIO, CheckpointSaver
from em.callbacks._display import Display
from em.callbacks._loggers import MetricsFile, wandb_logger
from em.config import Config


def make_trainer(experiment: Experiment, step: int = 0) -> tuple[pl.Trainer, Any]:
    """The Lightning Trainer of a configuration, and the W&B logger or None.

    Args:
        step: where training starts or resumes.
    """
    config, data = experiment.config, experiment.data
    options = config.trainer
    loggers: list[Any] = [MetricsFile(experiment.run, step)]
    wandb = wandb_logger(config, experiment.run)
    if wandb is not None:
        loggers.append(wandb)
    callbacks: list[Callback] = [*experiment.callbacks, Display(config.name)]
    if options.early_stop is not None:
        stop = options.early_stop
        callbacks.append(
            EarlyStopping(
                stop.monitor,
                min_delta=stop.min_delta,
                patience=stop.patience,
                mode=stop.mode,
                check_on_train_epoch_end=False,
            )
        )
    callbacks.append(CheckpointSaver(experiment.run.checkpoint, options.checkpoint_every_n_steps))
    validate = options.val_every_n_steps
    trainer = pl.Trainer(
        accelerator=_accelerator(config),
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_strategy(config),
        precision=options.precision,  # type: ignore[arg-type]
        max_steps=data.steps,
        max_epochs=-1,
        accumulate_grad_batches=data.accumulate,
        gradient_clip_val=options.gradient_clip,
        val_check_interval=validate * data.accumulate if validate else None,
        check_val_every_n_epoch=None if validate else 1,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        logger=loggers,
        log_every_n_steps=options.log_every_n_steps,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options.extra,
    )
    return trainer, wandb


def _accelerator(config: Config) -> str:
    if config.trainer.accelerator != "auto":
        return config.trainer.accelerator
    if config.backbone.device != "auto":
        return "gpu" if config.backbone.device.startswith("cuda") else config.backbone.device
    # Not Lightning's own `auto`: it would take Apple's MPS, which has no float64 for exact sums.
    return "gpu" if torch.cuda.is_available() else "cpu"


def _strategy(config: Config) -> Any:
    if config.trainer.strategy != "fsdp2":
        return config.trainer.strategy
    return ModelParallelStrategy(
        data_parallel_size=world_size(config), tensor_parallel_size=1, save_distributed_checkpoint=False
    )
