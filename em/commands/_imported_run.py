"""A run directory for an adapter or vector that others published."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from em.backbone import Backbone
from em.config import Config, build, load_comparison, to_dict, to_yaml
from em.config.members import override
from em.config.schema import SourceConfig
from em.config.yaml_files import merge
from em.datamodules.published import file_sha256
from em.errors import AdapterError, ConfigError
from em.files import expect_free, write_folder, write_text
from em.interventions._published import Published, check_layer
from em.interventions._published_lora import PICKLED, check_targets, read_lora
from em.interventions._published_vector import VECTOR_FILE, read_vector
from em.interventions.base import Intervention
from em.interventions.lora import PEFT_CONFIG, PEFT_WEIGHTS
from em.loading import load_backbone
from em.origin import origin
from em.progress import say
from em.runs import RunDirectory

SETTABLE = ("backbone", "data", "compare")


@dataclass(frozen=True)
class Wanted:
    """What shall be imported as what.

    Args:
        path: a PEFT folder, a `steering_vector.pt`, or a folder with one.
        out: the run directory to make; must not exist or be empty.
        model: in place of the model that the files name.
        name: of the run; default: the last part of `out`.
        conf: a YAML file whose `data` and `compare` are recorded: held-out rows for comparisons.
        settings: `key=value` of backbone, data or compare.
    """

    path: Path
    out: Path
    model: str | None = None
    name: str | None = None
    conf: Path | None = None
    settings: Sequence[str] = ()


def read_published(path: Path) -> Published:
    """Read a published artefact of any kind.

    Raises:
        AdapterError: it is none that em knows, is damaged, or cannot be held exactly.
    """
    if path.is_file():
        if path.suffix in (".pt", ".pth"):
            return read_vector(path)
        raise AdapterError(f"{path}: give the folder of a PEFT adapter, or a {VECTOR_FILE}")
    if not path.is_dir():
        raise AdapterError(
            f"{path}: does not exist; download it first, for example with "
            f"`hf download REPOSITORY --local-dir {path}`"
        )
    if (path / VECTOR_FILE).is_file():
        if any((path / name).is_file() for name in (PEFT_WEIGHTS, PICKLED)):
            raise AdapterError(f"{path}: holds a LoRA and {VECTOR_FILE}; give the file {VECTOR_FILE} itself")
        return replace(read_vector(path / VECTOR_FILE), model=_labelled_model(path / PEFT_CONFIG))
    if (path / PEFT_CONFIG).is_file():
        return read_lora(path)
    if (path / "manifest.json").is_file():
        raise AdapterError(f"{path}: is a run of em already; use it as it is")
    if (path / "config.json").is_file():
        raise AdapterError(f"{path}: is a whole model, no adapter; use it as backbone.model")
    raise AdapterError(f"{path}: holds neither {PEFT_CONFIG} nor {VECTOR_FILE}")


def _labelled_model(path: Path) -> str | None:
    """The model that an adapter_config.json beside a vector names: published vectors carry one as a label."""
    if not path.is_file():
        return None
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):  # no more than a label: --model is asked for instead
        return None
    return model if isinstance(model, str) and model else None


def import_run(wanted: Wanted) -> RunDirectory:
    """Make a finished run directory that `compare`, `eval`, `chat` and `runs.load` take like a trained one.

    Raises:
        AdapterError: see `read_published`, or it does not fit the model.
        ConfigError: a setting is wrong.
        RunError: `out` is in use or cannot be written.
    """
    out = wanted.out.expanduser().absolute()
    expect_free(out)
    published = read_published(wanted.path)
    shas = [{"name": file.name, "sha256": file_sha256(file)} for file in published.files]

    def write(scratch: Path) -> None:
        config = _config(wanted, published, shas, out, scratch)
        say(f"loading {config.backbone.model}")
        _write(published, config, shas, wanted.path, scratch)

    write_folder(out, write)
    for note in published.notes:
        say(f"  note: {note}")
    return RunDirectory(out)


def _config(
    wanted: Wanted, published: Published, shas: list[dict[str, str]], out: Path, scratch: Path
) -> Config:
    model = wanted.model or published.model
    if not isinstance(model, str):
        raise AdapterError(f"{wanted.path}: does not say which model it is for; name it with --model")
    backbone = {"model": model}
    if wanted.model is None and published.revision is not None:
        backbone["revision"] = published.revision
    raw: dict[str, Any] = {
        "name": wanted.name or out.name,
        "runs_dir": str(out.parent),
        "backbone": backbone,
        "intervention": published.component,
        "data": {"train": [{"path": "unknown"}]},
    }
    more, later = _settings(wanted.settings)
    write_text(scratch / "config.yaml", str(yaml.safe_dump(merge(raw, more))))
    config = load_comparison(scratch, wanted.conf, later)
    # Nobody here knows what it was trained on. The hash keeps two imports from being taken for two seeds.
    label = f"unknown training data of {shas[-1]['name']} {shas[-1]['sha256'][:16]}"
    config.data.train, config.data.kl = [SourceConfig(path=label)], []
    return config


def _settings(texts: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Those of the backbone merged, and those that come after `--conf`.

    Raises:
        ConfigError: one of them is not for the user to choose.
    """
    merged: dict[str, Any] = {}
    later, problems = [], []
    for text in texts:
        part = override(text)
        key = next(iter(part), "")
        inner = part[key] if isinstance(part.get(key), dict) else {}
        if key not in SETTABLE:
            problems.append(
                f"{text}: expected a setting of {', '.join(SETTABLE)}, for example data.held_out=0.2"
            )
        elif key == "data" and {"train", "kl"} & inner.keys():
            problems.append(
                f"{text}: what the artefact was trained on is not known here; name data.domains instead"
            )
        elif key == "backbone" and "model" in inner:
            problems.append(f"{text}: give --model instead")
        elif key == "backbone":
            merged = merge(merged, part)
        else:
            later.append(text)
    if problems:
        raise ConfigError(problems)
    return merged, later


def _write(
    published: Published, config: Config, shas: list[dict[str, str]], path: Path, folder: Path
) -> None:
    backbone = load_backbone(config.backbone)
    intervention = _attached(published, config, backbone)
    try:
        published.put_into(intervention, str(path))
        run = RunDirectory(folder)
        intervention.save(run.adapter)
        norm = intervention.norm()
    finally:
        intervention.detach()
    write_text(folder / "config.yaml", to_yaml(config))
    run.update_manifest(
        config=to_dict(config),
        status="finished",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        imported={
            "origin": str(path),
            "files": shas,
            "model": published.model,
            "revision": published.revision,
            "notes": published.notes,
        },
        backbone=backbone.describe(),
        norm=norm,
        **origin(),
    )


def _attached(published: Published, config: Config, backbone: Backbone) -> Intervention:
    if published.targets is not None:
        check_targets(published, backbone)
    else:
        check_layer(published.component["layer"], backbone, published.files[0])
    intervention: Intervention = build(config.intervention, "interventions")
    intervention.attach(backbone, config.seed)
    return intervention
