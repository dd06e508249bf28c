"""One experiment from its configuration to a finished run directory."""

import logging
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import ModelParallelStrategy

from em.backbone import Backbone
from em.callbacks._checkpoint import AtomicCheckpointIO, CheckpointSaver
from em.callbacks._display import Display
from em.callbacks._loggers import MetricsFile, log_adapter, wandb_logger
from em.callbacks.base import MeasurementCallback
from em.config import Config, build
from em.datamodules.chat import ChatData
from em.errors import BackboneError, Interrupted
from em.hooks import keyed_seed
from em.interventions.base import Intervention
from em.loading import load_backbone
from em.modules.sft import SFTModule
from em.progress import clock, say
from em.runs import RunDirectory, State, Stopwatch

logger = logging.getLogger("em")


@dataclass
class Experiment:
    """What a configuration builds: everything that training needs, attached and ready.

    Args:
        config: the checked configuration.
        run: its run directory.
        backbone: with `intervention` attached.
        data: read and encoded.
        module: the LightningModule.
        callbacks: measurements, by the order of the config.
    """

    config: Config
    run: RunDirectory
    backbone: Backbone
    intervention: Intervention
    data: ChatData
    module: SFTModule
    callbacks: list[MeasurementCallback]


def run_directory(config: Config) -> RunDirectory:
    return RunDirectory(f"{config.runs_dir}/{config.name}")


def seed_everything(config: Config) -> None:
    """Seed the global streams (everything of ours is keyed) and set threads."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    pl.seed_everything(keyed_seed(config.seed, "global") % 2**32, verbose=False)


def build_experiment(config: Config, run: RunDirectory, backbone: Backbone | None = None) -> Experiment:
    """Load the backbone, read the data, attach the intervention.

    Args:
        backbone: already loaded with `config.backbone`, shared by the members of a suite.

    Raises:
        EmError: whatever of model, data or adapter cannot be used.
    """
    if backbone is None:
        say(f"{config.name}: loading {config.backbone.model}")
        backbone = load_backbone(config.backbone)
    data = ChatData(
        config.data, config.kl, config.trainer, backbone.tokenizer, config.seed, world_size(config)
    )
    reference = None if config.reference is None else load_backbone(config.reference)
    if reference is not None and reference.vocab_size != backbone.vocab_size:
        raise BackboneError(
            f"reference.model {reference.name} has {reference.vocab_size} tokens, backbone.model "
            f"{backbone.name} has {backbone.vocab_size}; the KL term needs one vocabulary"
        )
    intervention: Intervention = build(config.intervention, "interventions")
    intervention.attach(backbone, config.seed)
    module = SFTModule(
        backbone,
        intervention,
        config.kl,
        config.optimizer,
        data.steps,
        data.accumulate,
        data.pad,
        config.seed,
        reference,
    )
    callbacks = []
    for name, component in config.callbacks.items():
        callback: MeasurementCallback = build(component, "callbacks")
        callback.name, callback.run = name, run
        callbacks.append(callback)
    return Experiment(config, run, backbone, intervention, data, module, callbacks)


def world_size(config: Config) -> int:
    """Processes of a run: `auto` and −1 count accelerators, `"0,2"` names two of them."""
    devices = config.trainer.devices
    if isinstance(devices, str) and "," in devices:
        count = len([part for part in devices.split(",") if part.strip()])
    elif str(devices) in ("auto", "-1"):
        count = max(1, torch.cuda.device_count())
    else:
        count = int(devices)
    return count * config.trainer.num_nodes


def train(config: Config, backbone: Backbone | None = None) -> RunDirectory:
    """Train, measure and save one experiment, or go on with an interrupted one.

    A finished run is left as it is. Every failure leaves a directory from which the same command goes on.

    Raises:
        EmError: any problem, with a message that names the fix; `Interrupted` after SIGTERM or Ctrl-C.
    """
    run = run_directory(config)
    with ExitStack() as stack:
        stack.enter_context(run.locked())
        state = run.claim(config)
        if state == "finished":
            say(f"{run.path} is finished; nothing to do (overwrite=true runs it again)")
            return run
        stack.enter_context(run.logged())
        watch = Stopwatch(run)
        try:
            _train(config, run, state, backbone, stack)
        except (Interrupted, KeyboardInterrupt):
            run.update_manifest(status="interrupted", wall_seconds=watch.seconds())
            raise
        except BaseException as error:
            logger.error("%s: %s", type(error).__name__, error)
            run.update_manifest(status="failed", error=str(error), wall_seconds=watch.seconds())
            raise
        run.update_manifest(status="finished", error=None, wall_seconds=watch.seconds())
        say(f"{config.name}: finished in {clock(watch.seconds())}; {run.path}")
    return run


def _train(
    config: Config, run: RunDirectory, state: State, backbone: Backbone | None, stack: ExitStack
) -> None:
    seed_everything(config)
    experiment = build_experiment(config, run, backbone)
    stack.callback(experiment.intervention.detach)
    _report_data(experiment)
    run.update_manifest(
        status="running",
        data=experiment.data.summary(),
        backbone=experiment.backbone.describe(),
        steps=experiment.data.steps,
    )
    resume = state == "resumable" and run.checkpoint.is_file()
    step = int(torch.load(run.checkpoint, weights_only=True)["global_step"]) if resume else 0
    if resume:
        say(f"{config.name}: going on after step {step} of {experiment.data.steps}")
    trainer, wandb = make_trainer(experiment, step)
    began = time.monotonic()
    try:
        fit(experiment, trainer, resume)
        _save(experiment, trainer, time.monotonic() - began)
        if wandb is not None and config.wandb.log_adapter:
            log_adapter(wandb, config, run)
    finally:
        if wandb is not None:
            import wandb as package

            package.finish()


def fit(experiment: Experiment, trainer: pl.Trainer, resume: bool) -> None:
    """Run the Trainer, then measurements that an earlier attempt did not get to."""
    with warnings.catch_warnings():
        # Batches are cut from lists in memory: workers would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*was not configured in `init`.*")
        # On purpose: SFTModule switches on the modules that act in training mode.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        checkpoint = str(experiment.run.checkpoint) if resume else None
        trainer.fit(experiment.module, None, None, experiment.data, checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    for callback in experiment.callbacks:
        if "end" in callback.at and not callback.ended:
            callback.on_train_end(trainer, experiment.module)


def _save(experiment: Experiment, trainer: pl.Trainer, seconds: float) -> None:
    experiment.intervention.save(experiment.run.adapter, write=trainer.global_rank == 0)
    norm = experiment.intervention.norm()
    tokens = experiment.module.tokens_seen
    experiment.run.update_manifest(
        status="trained",
        norm=norm,
        step=trainer.global_step,
        tokens_seen=tokens,
        tokens_per_second=round(experiment.module.mean_tokens_per_second, 2),
        fit_seconds=round(seconds, 2),
    )


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


def _report_data(experiment: Experiment) -> None:
    for use, reports in experiment.data.reports.items():
        for report in reports:
            skipped = ", ".join(f"{count} × {reason}" for reason, count in report.skipped.items())
            say(
                f"  {use}: {report.used} of {report.rows} rows of {report.source}, "
                f"{report.answer_tokens} answer tokens" + (f"; skipped {skipped}" if skipped else "")
            )
