"""Our side of the training rows: the ordinary path from a configuration to a fitted experiment."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from benchmarks.machine import clock
from benchmarks.ours.setting import build_config, loaded_backbone
from benchmarks.settings import Settings, read_plan
from em.backbone import Backbone
from em.building import Experiment, build_experiment, run_directory
from em.config import Config
from em.experiment import fit
from em.trainer import make_trainer


class Clock(pl.Callback):
    """When every step ended, and its losses."""

    def __init__(self, device: str):
        self.device, self.times = device, [clock(device)]
        self.sft: list[float] = []
        self.kl: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.times.append(clock(self.device))
        metrics: Any = module.step_metrics
        self.sft.append(metrics["train/sft_loss"])
        if "train/kl" in metrics:
            self.kl.append(metrics["train/kl"])


def run(settings: Settings, work: Path) -> dict[str, Any]:
    """Train once to warm up, then once against the clock.

    The time is that of the whole fit, with everything that is stored for later steps, to the end of the
    last step; loading the model and reading the data is not in it.
    """
    plan = read_plan(work)
    config = build_config(settings, work, plan["model"])
    backbone = loaded_backbone(settings, config)
    _warm_up(settings, work, plan["model"], backbone)
    if settings.sizes.get("measure_limit"):
        from benchmarks.ours.limit import measure_limit

        return measure_limit(settings, work, plan, config, backbone)
    timed, experiment = fitted(settings, config, backbone)
    experiment.detach()
    return _record(timed, experiment, plan)


def fitted(settings: Settings, config: Config, backbone: Backbone) -> tuple[Clock, Experiment]:
    """One fit, still attached."""
    run = run_directory(config)
    run.claim(config)
    experiment = build_experiment(config, run, backbone)
    trainer, _ = make_trainer(experiment)
    timed = Clock(settings.device)
    trainer.callbacks.append(timed)  # type: ignore[attr-defined]
    fit(experiment, trainer, resume=False)
    return timed, experiment


def _warm_up(settings: Settings, work: Path, model: str, backbone: Backbone) -> None:
    """One step on the same first rows, without a KL term, in a run of its own."""
    sizes = {key: value for key, value in settings.sizes.items() if key not in ("kl_rows", "measure_limit")}
    first = Settings(**{**vars(settings), "sizes": {**sizes, "steps": 1, "epochs": 1}})
    _, experiment = fitted(first, build_config(first, work, model, name="warm"), backbone)
    experiment.detach()


def _record(timed: Clock, experiment: Experiment, plan: dict[str, Any]) -> dict[str, Any]:
    times = timed.times
    losses = {"sft": timed.sft} | ({"kl": timed.kl} if timed.kl else {})
    seconds = times[-1] - times[0]
    return {
        "seconds": seconds,
        "steps": [later - earlier for earlier, later in zip(times, times[1:], strict=False)],
        "tokens": experiment.module.tokens_seen,
        "losses": losses,
    }
