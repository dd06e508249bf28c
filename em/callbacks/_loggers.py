"""Where metrics go: metrics.jsonl in the run directory, and Weights & Biases."""

import json
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from em.config import Config, to_dict
from em.errors import RunError
from em.files import write_text
from em.progress import is_main_process
from em.runs import RunDirectory


class MetricsFile(Logger):
    """One JSON object a line: step, time and the metrics logged together.

    Args:
        run: the run directory; rows after `step` of an earlier, interrupted attempt are taken out.
        step: the step at which training starts or resumes.
    """

    def __init__(self, run: RunDirectory, step: int = 0):
        super().__init__()
        self._path: Path = run.metrics
        kept = [row for row in run.read_metrics() if row["step"] <= step] if step else []
        if is_main_process():
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        # JSON has no NaN: a number that is not finite is written as null, never left out.
        clean = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        row = {"step": step, "time": round(time.time(), 3), **clean}
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written ({error.strerror})") from error

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is in config.yaml already."""


def wandb_logger(config: Config, run: RunDirectory) -> WandbLogger | None:
    """The W&B logger of a run, or None with `wandb.mode=none`; offline unless asked otherwise."""
    if config.wandb.mode == "none":
        return None
    import wandb

    settings = wandb.Settings(save_code=False, console="off", silent=True, disable_git=True)
    logger = WandbLogger(
        name=config.name,
        save_dir=str(run.path),
        offline=config.wandb.mode == "offline",
        id=run.manifest().get("wandb_id"),
        resume="allow" if config.wandb.mode == "online" else None,  # offline runs cannot be resumed
        project=config.wandb.project,
        entity=config.wandb.entity,
        group=config.wandb.group,
        tags=config.wandb.tags,
        settings=settings,
        config=to_dict(config),
    )
    # Lightning always passes this argument, and wandb warns about it in every run.
    logger._wandb_init.pop("anonymous", None)
    return logger


@rank_zero_only
def log_adapter(logger: WandbLogger, config: Config, run: RunDirectory) -> None:
    """Log the adapter folder as an artifact (kept locally when offline)."""
    import wandb

    artifact = wandb.Artifact(config.name.replace("/", "-"), type="adapter")
    artifact.add_dir(str(run.adapter))
    logger.experiment.log_artifact(artifact)
