"""A file with its overrides, merged and not yet resolved: one mapping, or one for every member of a suite."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from em.config.members import Member, Override, decided, members_of, override
from em.config.sweep import Point, overridden, points
from em.config.values import show
from em.config.yaml_files import Layers, first_line, merge, merged, read_layers
from em.errors import ConfigError

DEFINE = "define"  # values for interpolations; no part of a configuration


@dataclass(frozen=True)
class Bodies:
    """What a file stands for.

    Args:
        name: of the experiment, or of the suite.
        bodies: the mapping of each member; of an experiment the only one, under its name.
        suite: whether it has members.
    """

    name: str
    bodies: dict[str, dict[str, Any]]
    suite: bool


def read_bodies(path: Path, overrides: Iterable[str]) -> Bodies:
    """Read and merge a file, what it extends, what its members extend, and the overrides.

    Raises:
        ConfigError: a file, an override or a member cannot be used.
    """
    layers = read_layers(path)
    raw = merged(layers)
    raw.setdefault("name", path.stem)
    everywhere: list[Override] = []
    for_members: list[Override] = []
    for text in overrides:
        part = override(text)
        if "sweep" in part:
            raw["sweep"] = overridden(raw.get("sweep"), text, part["sweep"])
        else:
            (for_members if "members" in part else everywhere).append((text, part))
    if raw.get("sweep") is None:
        raw.pop("sweep", None)
    several = bool(raw.keys() & {"members", "sweep"})
    if for_members and not several:
        raise ConfigError(f"{for_members[0][0]}: {path} is not a suite; it has no members")
    if several:
        return _suite(path, layers, raw, everywhere, for_members)
    _check_definitions(everywhere, _defined(raw))
    body = _plain(reduce(merge, (part for _, part in everywhere), raw))
    return Bodies(str(body["name"]), {str(body["name"]): body}, suite=False)


def resolved(body: dict[str, Any]) -> dict[str, Any]:
    """A mapping with its interpolations replaced by what they name, and without its definitions.

    Raises:
        ConfigError: one names nothing, or the definitions are no mapping.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.create(body), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(where + first_line(error)) from error
    assert isinstance(plain, dict)
    defined = plain.get(DEFINE)
    if not isinstance(defined, dict | None):
        raise ConfigError(f"{DEFINE}: expected a mapping of names to values, got {show(defined)}")
    return {str(key): value for key, value in plain.items() if key != DEFINE}


def _suite(
    path: Path, layers: Layers, raw: dict[str, Any], everywhere: list[Override], for_members: list[Override]
) -> Bodies:
    parts = [part for _, part in everywhere]
    name = _suite_name(path, reduce(merge, parts, _plain(raw)))
    swept = points(raw["sweep"]) if "sweep" in raw else [Point("", {})]
    lost = [line for text, part in everywhere for line in decided(text, swept, part)]
    if lost:
        raise ConfigError(lost)
    members = members_of(path, raw, swept, for_members)
    known = [
        name for one in members.values() for part in (merged(one.base), one.own) for name in _defined(part)
    ]
    given = [(f"members.{name}", over) for name, one in members.items() for over in one.over]
    _check_definitions([*everywhere, *given], [*_defined(raw), *known])
    bodies = {
        member: {**_member_body(layers, made, parts), "name": f"{name}/{member}"}
        for member, made in members.items()
    }
    return Bodies(name, bodies, suite=True)


def _member_body(layers: Layers, member: Member, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """As if the suite's file extended, after its own bases, what the member extends."""
    *_, own = layers
    new = {place: raw for place, raw in member.base.items() if place not in layers}
    inherited = {place: raw for place, raw in layers.items() if place != own}
    shared = reduce(merge, parts, _plain(merged({**inherited, **new, own: layers[own]})))
    return _plain(reduce(merge, [member.own, *parts, *member.over], shared))


def _plain(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in ("members", "sweep", "description")}


def _defined(part: dict[str, Any]) -> list[str]:
    given = part.get(DEFINE)
    return [str(name) for name in given] if isinstance(given, dict) else []


def _check_definitions(overrides: list[Override], known: list[str]) -> None:
    """Refuse to give values that nothing refers to, for they would be lost without a word."""
    names = list(dict.fromkeys(known))
    problems = []
    for text, part in overrides:
        for name in _defined(part):
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}"
                problems.append(f"{text}: the file defines no {name}; {hint}")
    if problems:
        raise ConfigError(problems)


def _suite_name(path: Path, shared: dict[str, Any]) -> str:
    try:
        name = OmegaConf.create(shared)["name"]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: name: {first_line(error)}") from error
    if not isinstance(name, str):
        raise ConfigError(f"{path}: name: expected text, got {show(name)}")
    return name
