"""The extension surface: subclass MeasurementCallback and write one method."""

import random
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import Logger

from em.backbone import Backbone
from em.callbacks import _sinks
from em.datamodules.chat import ChatData
from em.datamodules.rows import MicroBatch
from em.errors import EmError, MeasurementError
from em.files import write_json
from em.hooks import generator_for
from em.interventions.base import Intervention
from em.modules.sft import SFTModule
from em.progress import say
from em.runs import RunDirectory

When = Literal["start", "end", "step"]


@dataclass(frozen=True)
class _Failure:
    """What a process gathers instead of a value when its measurement has failed and its run goes on."""

    message: str


class FailedElsewhere(MeasurementError):
    """A measurement that failed in another process."""


@dataclass(frozen=True)
class RunContext:
    """What a measurement may use.

    Args:
        backbone, intervention: the adapted model; `intervention.disabled()` gives the reference.
        data: held-out rows by domain, and the training streams.
        run: the run directory.
        module: the LightningModule, for its reference model and objective.
        step: optimizer steps taken so far, of `steps`.
        when: why the callback fires now.
        seed: of the run.
        rank, world_size: this process; every process measures its share.
        name: of the callback, in front of what it logs.
        loggers: where the numbers go.
    """

    backbone: Backbone
    intervention: Intervention
    data: ChatData
    run: RunDirectory
    module: SFTModule
    step: int
    steps: int
    when: When
    seed: int
    rank: int
    world_size: int
    name: str = ""
    loggers: Sequence[Logger] = ()

    @property
    def solution(self) -> str:
        """The name of what is trained in tables and figures: the last part of the run's name."""
        return self.run.path.name

    def generator(self, *purpose: int | str) -> torch.Generator:
        """Randomness keyed by (seed, purpose), the same at every step and in every process."""
        return generator_for(self.seed, *purpose)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in rank order, on every process.

        Raises:
            MeasurementError: another process has failed and has none.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        failed = next((one for one in values if isinstance(one, _Failure)), None)
        if failed is not None and not isinstance(value, _Failure):
            raise FailedElsewhere(failed.message)
        return values

    def save_table(self, name: str, table: Any) -> None:
        """Write tables/NAME.json into the run directory, from one process."""
        if self.rank == 0:
            write_json(self.run.table(name), table)

    def show(self, section: str, table: dict[str, Any]) -> None:
        """Draw the figures that `em.figures.sections` has for a table, from one process.

        All go to W&B where the run has it, each as the image NAME/ID and the table NAME/ID/table; those of
        the end are also saved as figures/ID.svg and figures/ID.png of the run directory.

        Args:
            section: name of the table there, for example `efficiency`.
        """
        if self.rank == 0:
            folder = self.run.path / "figures" if self.when == "end" else None
            _sinks.show(section, table, self.solution, folder, self.loggers, self.name, self.step)


class MeasurementCallback(pl.Callback):
    """Decides when a measurement runs and logs it; a subclass implements `measure`.

    When: `at: [start]` before the first optimizer step, `at: [end]` after the last one,
    `every_n_steps: n` after each n-th optimizer step. All processes enter `measure` together.

    Around each call this base class keeps training as it was: RNG states, train/eval mode, gradients and
    requires_grad are restored, and the time does not count into throughput.

    Logged: each number that `measure` returns, as NAME/key with the optimizer step, where NAME is the
    callback's key in the config.

    A `measure` that sets `self.stop_reason` (on every process alike) ends training after this step.

    Args:
        at: `start`, `end` or both.
        every_n_steps: also after each n-th optimizer step.
        on_error: a measurement that fails with an error of this project stops the run (`raise`), or is
            logged and the run goes on (`warn`). Other exceptions are bugs and always stop it.
    """

    def __init__(
        self,
        *,
        at: list[Literal["start", "end"]] | None = None,
        every_n_steps: int | None = None,
        on_error: Literal["raise", "warn"] = "raise",
    ):
        self.at = at if at is not None else ([] if every_n_steps else ["end"])
        self.every_n_steps = every_n_steps
        self.on_error = on_error
        self.name = type(self).__name__.lower()
        self.run: RunDirectory | None = None  # set by the experiment before training
        self.ended = False
        self.stop_reason: str | None = None

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        """Refuse what cannot be measured, before training; called once, with the intervention attached.

        Raises:
            EmError: for example a layer that the backbone does not have, or a domain without pairs.
        """

    @abstractmethod
    def measure(self, context: RunContext) -> dict[str, float] | None:
        """Measure and return the numbers to log; tables go through `context.save_table`."""

    @property
    def state_key(self) -> str:
        return f"em.{self.name}"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "start" in self.at and trainer.global_step == 0:
            self.run_now(trainer, pl_module, "start")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: MicroBatch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, SFTModule)
        last_micro = batch.micro + 1 == pl_module.accumulate
        if self.every_n_steps and last_micro and trainer.global_step % self.every_n_steps == 0:
            self.run_now(trainer, pl_module, "step")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "end" in self.at and not self.ended:
            self.run_now(trainer, pl_module, "end")
            self.ended = True

    def run_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule, when: When) -> None:
        """Measure once and log; training cannot tell that it happened."""
        assert isinstance(pl_module, SFTModule) and self.run is not None
        context = self._context(trainer, pl_module, when)
        with isolated(pl_module):
            try:
                metrics = self.measure(context) or {}
                if self.on_error == "warn":
                    context.gather(None)
            except EmError as error:
                if self.on_error == "raise":
                    raise
                if not isinstance(error, FailedElsewhere):  # the others wait, or will, for a value
                    context.gather(_Failure(str(error)))
                say(f"callback {self.name} failed at step {context.step}, training goes on: {error}")
                return
        named = {f"{self.name}/{key}": float(value) for key, value in metrics.items()}
        for sink in trainer.loggers:
            sink.log_metrics(named, context.step)
        if self.stop_reason is not None:
            trainer.should_stop = True

    def _context(self, trainer: pl.Trainer, module: SFTModule, when: When) -> RunContext:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ChatData) and self.run is not None
        return RunContext(
            backbone=module.backbone,
            intervention=module.intervention,
            data=data,
            run=self.run,
            module=module,
            step=trainer.global_step,
            steps=module.steps,
            when=when,
            seed=module.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            name=self.name,
            loggers=tuple(trainer.loggers),
        )


@contextmanager
def isolated(module: SFTModule) -> Iterator[None]:
    """Restore RNG states, modes, gradients and requires_grad after a measurement."""
    began = time.perf_counter()
    modes = [(child, child.training) for child in module.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    python, legacy = random.getstate(), np.random.get_state()
    devices = [module.device] if module.device.type == "cuda" else []
    module.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        for child, training in modes:
            child.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        module.leave_out(time.perf_counter() - began)
