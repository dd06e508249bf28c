"""YAML files that extend each other, read and merged as plain mappings."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from em.config.build import NAMING
from em.config.values import show
from em.errors import ConfigError

CONF = Path("conf")
OWN = ("name", "description")  # say something of one file, not of those that extend it


def read_extended(path: Path) -> dict[str, Any]:
    """A file merged over what it extends, with interpolations not yet resolved.

    Raises:
        ConfigError: a file is missing, is not a YAML mapping, or extends itself.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration{_hint_configs(path)}")
    return _read_chain(path, ())


def _read_chain(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    below = (*below, path.resolve())
    raw = read_yaml(path)
    bases = raw.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: extends: expected a file name or a list of them, got {show(bases)}")
    merged: dict[str, Any] = {}
    for base in bases:
        target = path.parent / base
        if target.resolve() in below:
            circle = [*below[below.index(target.resolve()) :], target]
            raise ConfigError(f"{path}: extends itself: {' -> '.join(step.name for step in circle)}")
        if not target.is_file():
            raise ConfigError(f"{path}: extends {base!r}, which does not exist{_hint_siblings(target)}")
        inherited = _read_chain(target, below)
        merged = merge(merged, {key: value for key, value in inherited.items() if key not in OWN})
    return dict(merge(merged, raw))


def read_yaml(path: Path) -> dict[str, Any]:
    """One file as a plain mapping.

    Raises:
        ConfigError: it cannot be read, or is not a YAML mapping; names the line.
    """
    try:
        loaded = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML mapping ({first_line(error)})") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of keys, got a list")
    plain = OmegaConf.to_container(loaded, resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def merge(base: Any, over: Any) -> Any:
    """`over` on top of `base`: mappings merge, all else replaces, null drops a mapping.

    A component of another kind replaces the whole component, whose options would not fit it.
    """
    if not isinstance(base, dict) or not isinstance(over, dict) or _renamed(base, over):
        return over
    merged = dict(base)
    for key, value in over.items():
        if value is None and isinstance(merged.get(key), dict):
            del merged[key]
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _renamed(base: dict[str, Any], over: dict[str, Any]) -> bool:
    before, after = ({key: part[key] for key in NAMING if part.get(key)} for part in (base, over))
    return bool(before and after and before != after)


def first_line(error: Exception) -> str:
    """An error of OmegaConf or PyYAML without its context, which names their own types."""
    line = str(error).split("\n")[0]
    return line.removeprefix("KeyError raised while resolving interpolation: ").strip('"')


def _hint_siblings(target: Path) -> str:
    folder = target.parent
    names = [path.name for path in _configs(folder.iterdir() if folder.is_dir() else [])]
    near = get_close_matches(target.name, names, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def _hint_configs(path: Path) -> str:
    folder = path.parent
    found = {candidate.as_posix(): candidate for candidate in _configs(CONF.rglob("*"))}
    found |= {
        candidate.as_posix(): candidate for candidate in _configs(folder.iterdir() if folder.is_dir() else [])
    }
    near = get_close_matches(path.as_posix(), found, n=1, cutoff=0.7)
    by_stem = {candidate.stem: name for name, candidate in found.items()}
    near = near or [by_stem[stem] for stem in get_close_matches(path.stem, by_stem, n=1)]
    return f"; did you mean {near[0]}?" if near else ""


def _configs(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix in (".yaml", ".yml"))
