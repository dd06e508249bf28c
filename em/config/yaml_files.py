"""YAML files that extend each other, read and merged as plain mappings."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import reduce
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


# What each file says by itself, without `extends`: what is extended comes before what extends it.
Layers = dict[Path, dict[str, Any]]


def read_extended(path: Path) -> dict[str, Any]:
    """A file merged over what it extends, with interpolations not yet resolved.

    Raises:
        ConfigError: a file is missing, is not a YAML mapping, or extends itself.
    """
    return merged(read_layers(path))


def read_layers(path: Path) -> Layers:
    """A file after all that it extends; what is reached twice counts once, where it comes first.

    Raises:
        ConfigError: see `read_extended`.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration{_hint_configs(path)}")
    found: Layers = {}
    _collect(path, (), found, {})
    *below, own = found
    return {**{place: _inherited(found[place]) for place in below}, own: found[own]}


def read_bases(bases: list[str], of: Path, known: Layers) -> Layers:
    """All that a member extends.

    Args:
        bases: files, relative to the working directory.
        of: the member's own file, which none of them may extend.
        known: files that were read before, for other members; those read now are added.

    Raises:
        ConfigError: see `read_extended`, or the files are a suite themselves.
    """
    found: Layers = {}
    for base in bases:
        target = Path(base)
        if target.resolve() == of.resolve():
            raise ConfigError(f"{base} is the file of the member itself")
        if not target.is_file():
            raise ConfigError(f"{base} does not exist{_hint_siblings(target)}")
        _collect(target, (of.resolve(),), found, known)
    inherited = {place: _inherited(raw) for place, raw in found.items()}
    several = [key for key in ("members", "sweep") if merged(inherited).get(key) is not None]
    if several:
        raise ConfigError(f"{' and '.join(bases)} has {several[0]}; name files of one experiment")
    return inherited


def merged(layers: Layers) -> dict[str, Any]:
    """Every layer on top of those before it."""
    return dict(reduce(merge, layers.values(), {}))


def _collect(path: Path, below: tuple[Path, ...], found: Layers, known: Layers) -> None:
    """Add what a file extends, then what it says."""
    place = path.resolve()
    if place in found:
        return
    below = (*below, place)
    if place not in known:
        known[place] = read_yaml(path)
    raw = dict(known[place])
    bases = raw.pop("extends", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: extends: expected a file name or a list of them, got {show(bases)}")
    for base in bases:
        target = path.parent / base
        if target.resolve() in below:
            circle = [*below[below.index(target.resolve()) :], target]
            raise ConfigError(f"{path}: extends itself: {' -> '.join(step.name for step in circle)}")
        if not target.is_file():
            raise ConfigError(f"{path}: extends {base!r}, which does not exist{_hint_siblings(target)}")
        _collect(target, below, found, known)
    found[place] = _anchored(raw, path)


def _inherited(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in OWN}


def _anchored(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The files that members extend stand relative to their own file, which may be another's base."""
    members = raw.get("members")
    if not isinstance(members, dict):
        return raw
    return {**raw, "members": {name: _anchored_member(own, path) for name, own in members.items()}}


def _anchored_member(own: Any, path: Path) -> Any:
    bases = own.get("extends") if isinstance(own, dict) else None
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        return own  # what is wrong with it is told with the member's other problems
    return {**own, "extends": [(path.parent / base).as_posix() for base in bases]}


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
