"""The run directory: claim it, write it, read it back."""

import fcntl
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from em.backbone import Backbone
from em.config import Config, build, check, to_dict, to_yaml
from em.errors import ConfigError, RunError
from em.files import write_json, write_text
from em.loading import load_backbone
from em.origin import origin
from em.progress import is_main_process

if TYPE_CHECKING:  # runs stands left of interventions; at run time they are built by name
    from em.interventions.base import Intervention

State = Literal["fresh", "resumable", "finished"]
# Keys that change where a run happens or is logged, but not what it computes.
NEUTRAL = (
    *("overwrite", "runs_dir", "wandb", "compare", "states", "backbone.device"),
    "trainer.checkpoint_every_n_steps",
)


class RunDirectory:
    """`runs/NAME/`: config.yaml, manifest.json, adapter/, metrics.jsonl, tables/, checkpoints/, log.txt.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def table(self, name: str) -> Path:
        return self.path / "tables" / f"{name}.json"

    def manifest(self) -> dict[str, Any]:
        """The manifest, empty when there is none yet.

        Raises:
            RunError: it cannot be read.
        """
        path = self.path / "manifest.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); use another name=… or overwrite=true"
            ) from error
        return value if isinstance(value, dict) else {}

    def update_manifest(self, **values: Any) -> None:
        """Merge values into the manifest (main process only)."""
        if is_main_process():
            write_json(self.path / "manifest.json", {**self.manifest(), **values})

    def state(self, config: Config) -> State:
        """Whether the directory is new, can be resumed, or is finished, for exactly this config.

        Raises:
            RunError: it holds another configuration's run, or files that are not a run's.
        """
        manifest = self.manifest()
        if not manifest:
            if self.path.is_dir() and any(p.name != ".lock" for p in self.path.iterdir()):
                raise RunError(f"{self.path} is not empty and not a run; choose another name=…")
            return "fresh"
        finished = manifest.get("status") == "finished"
        different = differences(manifest.get("config", {}), to_dict(config))
        if not finished:  # callbacks cannot change training, so one that fails may be taken out
            different = [one for one in different if not one.startswith("callbacks")]
        if different and not self.checkpoint.is_file() and not self.adapter.is_dir():
            return "fresh"  # it failed before anything was trained, so there is nothing to lose
        if different:
            raise RunError(
                f"{self.path} holds a run with another configuration: {'; '.join(different[:5])}; "
                "choose another name=…, or overwrite=true to replace it"
            )
        return "finished" if finished else "resumable"

    def claim(self, config: Config) -> State:
        """Make the directory this config's; what is there is kept unless `overwrite` is set.

        Raises:
            RunError: see `state`, or the directory cannot be written.
        """
        if config.overwrite and not is_main_process():
            return "fresh"  # the main process may not have deleted the old run yet
        if config.overwrite and self.manifest():
            shutil.rmtree(self.path)
        state = self.state(config)
        if state == "fresh" and is_main_process():
            write_text(self.path / "config.yaml", to_yaml(config))
            self.update_manifest(
                config=to_dict(config),
                status="running",
                started=_now(),
                seeds=_seeds(config),
                wandb_id=uuid.uuid4().hex[:8],
                **origin(),
            )
        if state == "resumable" and is_main_process():  # what may differ is now as it is run
            write_text(self.path / "config.yaml", to_yaml(config))
            self.update_manifest(config=to_dict(config))
        return state

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory: a second process on it is refused; a killed one leaves no lock behind."""
        if not is_main_process():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path} is in use by another process; wait, or use name=…") from error
            yield

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Copy the log messages of `em` into log.txt."""
        if not is_main_process():
            yield
            return
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("em")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def read_metrics(self) -> list[dict[str, Any]]:
        """All logged rows: step, time and metrics."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def read_table(self, name: str) -> Any:
        """A table that a measurement wrote.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        try:
            return json.loads(self.table(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path}: table {name} cannot be read ({error})") from error


@dataclass(frozen=True)
class RunRecord:
    """A trained run as its directory describes it, with nothing loaded."""

    directory: RunDirectory
    config: Config
    manifest: dict[str, Any]

    @contextmanager
    def adapted(self, backbone: Backbone) -> Iterator["Intervention"]:
        """The trained intervention on a backbone for the length of a `with` block.

        Raises:
            AdapterError: the adapter does not belong to the backbone.
        """
        intervention: Intervention = build(self.config.intervention, "interventions")
        intervention.attach(backbone, self.config.seed)
        try:
            intervention.load(self.directory.adapter)
            yield intervention
        finally:
            intervention.detach()


def read(path: Path | str) -> RunRecord:
    """Read a run's configuration and manifest.

    Raises:
        RunError: the directory is no run, not trained to the end, or lacks its adapter.
    """
    directory = RunDirectory(path)
    try:
        raw = yaml.safe_load((directory.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(
            f"{path}: no readable config.yaml; give the directory of a trained run ({error})"
        ) from error
    manifest = directory.manifest()
    if manifest.get("status") not in ("trained", "finished"):
        raise RunError(
            f"{path}: its status is {manifest.get('status')!r}; run its training command to the end"
        )
    if not directory.adapter.is_dir():
        raise RunError(f"{path}: has no adapter/; train it again with overwrite=true")
    try:
        config = check(raw, files=False)
    except ConfigError as error:
        raise RunError(f"{directory.path / 'config.yaml'}: {error}") from error
    return RunRecord(directory, config, manifest)


@dataclass(frozen=True)
class LoadedRun:
    """A run read back: the backbone with the trained intervention attached."""

    directory: RunDirectory
    config: Config
    backbone: Backbone
    intervention: "Intervention"
    manifest: dict[str, Any]


def load(path: Path | str, backbone: Backbone | None = None) -> LoadedRun:
    """Rebuild the adapted model of a run directory.

    Args:
        path: the run directory.
        backbone: use this one instead of loading the run's; it must have the same weights.

    Raises:
        RunError: the directory is no run or not trained to the end.
        AdapterError: the adapter does not belong to the backbone.
    """
    record = read(path)
    directory, config = record.directory, record.config
    if backbone is None:
        backbone = load_backbone(config.backbone)
        if config.backbone.device == "auto" and torch.cuda.is_available():
            backbone.to("cuda")
    intervention: Intervention = build(config.intervention, "interventions")
    intervention.attach(backbone, config.seed)
    intervention.load(directory.adapter)
    return LoadedRun(directory, config, backbone, intervention, record.manifest)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys whose values differ in a way that changes what a run computes, as `key: old → new`."""
    a, b = _flat(old), _flat(new)
    keys = sorted(
        key
        for key in a.keys() | b.keys()
        if a.get(key) != b.get(key) and not any(key == n or key.startswith(n + ".") for n in NEUTRAL)
    )
    return [f"{key}: {a.get(key)!r} → {b.get(key)!r}" for key in keys]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seeds(config: Config) -> dict[str, int]:
    return {"seed": config.seed, "split_seed": config.data.split_seed}


class Stopwatch:
    """Wall time of a run over all its processes, carried in the manifest."""

    def __init__(self, directory: RunDirectory):
        self._before = float(directory.manifest().get("wall_seconds", 0.0))
        self._began = time.monotonic()

    def seconds(self) -> float:
        return round(self._before + time.monotonic() - self._began, 2)
