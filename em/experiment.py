"""One experiment from its configuration to a finished run directory."""

import logging
import time
import warnings
from contextlib import ExitStack

import lightning.pytorch as pl
import torch

from em.backbone import Backbone
from em.building import Experiment, build_experiment, run_directory, seed_everything, world_size
from em.callbacks._loggers import log_adapter
from em.callbacks._watch import Watch
from em.config import Config
from em.errors import EmError, Interrupted
from em.evaluation.stored import evaluations_of
from em.progress import clock, is_main_process, say
from em.report.evaluated import write_evaluation_page
from em.runs import RunDirectory, State, Stopwatch
from em.trainer import make_trainer

logger = logging.getLogger("em")


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
            others = Watch(run, world_size(config))
            with others.watching():
                _train(config, run, state, backbone, stack, others)
        except (Interrupted, KeyboardInterrupt):
            run.update_manifest(status="interrupted", wall_seconds=watch.seconds())
            raise
        except BaseException as error:
            logger.error("%s: %s", type(error).__name__, error)
            run.update_manifest(status="failed", error=str(error), wall_seconds=watch.seconds())
            raise
        run.update_manifest(status="finished", error=None, wall_seconds=watch.seconds())
        _show_evaluations(run)
        say(f"{config.name}: finished in {clock(watch.seconds())}; {run.path}")
    return run


def _train(
    config: Config,
    run: RunDirectory,
    state: State,
    backbone: Backbone | None,
    stack: ExitStack,
    others: Watch,
) -> None:
    seed_everything(config)
    experiment = build_experiment(config, run, backbone)
    stack.callback(experiment.detach)
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
    others.joins(trainer)
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


def _show_evaluations(run: RunDirectory) -> None:
    """A page for each evaluation that a callback took; the run is finished whatever happens here."""
    if not is_main_process():
        return
    for folder in evaluations_of(run.path):
        try:
            say(f"answers to read: {write_evaluation_page(folder)}")
        except EmError as error:
            say(f"{folder}: its page cannot be drawn: {error}")


def _report_data(experiment: Experiment) -> None:
    for use, reports in experiment.data.reports.items():
        for report in reports:
            skipped = ", ".join(f"{count} × {reason}" for reason, count in report.skipped.items())
            say(
                f"  {use}: {report.used} of {report.rows} rows of {report.source}, "
                f"{report.answer_tokens} answer tokens" + (f"; skipped {skipped}" if skipped else "")
            )
