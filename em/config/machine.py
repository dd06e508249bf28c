"""Rules about this machine: files, folders, packages and logins that a configuration names."""

import importlib.util
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from em.config.data_files import DATA_VARIABLE, corpora, find, places, source_lists
from em.config.facts import ModelFacts
from em.config.schema import Config


def data_files(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    root = config.data.root
    for key, sources in source_lists(config):
        for index, source in enumerate(sources):
            if source.path is not None and not find(source.path, root):
                yield _missing(f"{key}[{index}].path", source.path, root, "a file")
    for key, corpus in corpora(config):
        if corpus.path is not None and not find(corpus.path, root, folders=True):
            yield _missing(f"{key}.path", corpus.path, root, "a file or folder")


def _missing(key: str, path: str, root: str | None, expected: str) -> str:
    tried = places(path, root)
    line = f"{key}: {path!r} is not {expected}; tried {', '.join(map(str, tried))}"
    near = _nearest(tried)
    if near:
        line += f"; did you mean {near}?"
    relative = not Path(path).expanduser().is_absolute()
    if relative and not root and not os.environ.get(DATA_VARIABLE):
        line += f"; set {DATA_VARIABLE} or data.root to your data folder"
    return line


def _nearest(tried: list[Path]) -> str | None:
    for place in tried:
        names = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        near = get_close_matches(place.name, names, n=1)
        if near:
            return near[0]
    return None


def models(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for key, part in (("backbone", config.backbone), ("reference", config.reference)):
        model = part.model if part else ""
        local = model.startswith((".", "/", "~")) or model.endswith(".gguf")
        if local and not Path(model).expanduser().exists():
            yield f"{key}.model: {model!r} does not exist; give a local folder, a .gguf file or a hub id"


def initial_vector(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    if config.intervention.get("kind") != "steering_vector":
        return
    init = config.intervention.get("init", "zero")
    if isinstance(init, str) and init != "zero" and not Path(init).exists():
        yield f"intervention.init: {init!r} does not exist; give zero, a safetensors file or adapter folder"


def directions(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for index, component in enumerate(config.during_training):
        path = component.get("direction")
        if isinstance(path, str) and not Path(path).exists():
            yield (
                f"during_training[{index}].direction: {path!r} does not exist; give a safetensors file that "
                "holds a direction, or a folder with one"
            )


def optimizer_package(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    if config.optimizer.name == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        yield (
            "optimizer.name: adamw_8bit needs bitsandbytes, which is not installed; "
            "pip install bitsandbytes, or set optimizer.name: adamw"
        )


def wandb_login(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    if config.wandb.mode != "online" or os.environ.get("WANDB_API_KEY"):
        return
    if not (Path.home() / ".netrc").exists():
        yield "wandb.mode: online needs `wandb login` or WANDB_API_KEY; or set wandb.mode: offline"


MACHINE_RULES = (data_files, models, initial_vector, directions, optimizer_package, wandb_login)
