"""The members of a suite: what the file says, what the command line says, and where a sweep puts them."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from em.config.sweep import Point, cross, swept_key
from em.config.sweep_names import PLAIN_NAME
from em.config.values import show
from em.config.yaml_files import Layers, first_line, read_bases
from em.errors import ConfigError

Override = tuple[str, dict[str, Any]]  # the text, and the mapping it stands for


def override(text: str) -> dict[str, Any]:
    """`kl.weight=0.1` as the mapping it stands for.

    Raises:
        ConfigError: it is no such text.
    """
    key, equals, _ = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"{text}: expected an override such as kl.weight=0.1")
    try:
        part = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=False)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text}: the value is not valid YAML; quote it for the shell") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{text}: {first_line(error)}") from error
    assert isinstance(part, dict)
    return {str(name): value for name, value in part.items()}


def decided(text: str, swept: list[Point], part: Any) -> Iterator[str]:
    """The problem of an override of what the sweep sets: it would be lost, or make a name untrue."""
    key = swept_key(swept, part)
    if key is not None:
        yield f"{text}: the sweep sets {key}; change its list: sweep.{key}=[…]"


@dataclass(frozen=True)
class Member:
    """What makes a member of a suite, besides what it shares with the others.

    Args:
        base: the files that it extends, and all that those extend.
        own: what the suite's file says of it.
        over: each override of it, and its point of the sweep.
    """

    base: Layers
    own: dict[str, Any]
    over: list[dict[str, Any]]


def members_of(
    path: Path, raw: dict[str, Any], swept: list[Point], overrides: list[Override]
) -> dict[str, Member]:
    """Every member that is not dropped, by name.

    Raises:
        ConfigError: an override names no member, or all that is wrong with the members.
    """
    unnamed = raw.get("members") is None and "sweep" in raw
    own = {"": {}} if unnamed else _own_members(path, raw["members"])
    named = {} if unnamed else own
    problems = [line for member, part in named.items() for line in _member_problems(member, part)]
    problems += [line for member, part in named.items() for line in _bad_bases(member, part)]
    made = cross(list(own), swept)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in made}
    for text, part in overrides:
        for given, over in _addressed(text, part, [*made, *own]).items():
            names = [name for name, (member, _) in made.items() if given in (name, member) and name in found]
            if not names:
                raise ConfigError(f"{text}: {path} has no member {given!r}; {nearest(given, list(found))}")
            if over is not None:
                problems += [*_member_problems(given, over), *decided(text, swept, over)]
                problems += _extending(given, over)
            for name in names:
                if over is None:
                    del found[name]
                else:
                    found[name].append(over)
    if not found:
        problems.append(f"{path}: members: none is left; a suite needs at least one")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    bases = _bases(path, {member: own[member] for member in dict.fromkeys(made[name][0] for name in found)})
    return {
        name: Member(bases[made[name][0]], _without_bases(own[made[name][0]]), [*over, made[name][1].layer()])
        for name, over in found.items()
    }


def _bases(path: Path, members: dict[str, dict[str, Any]]) -> dict[str, Layers]:
    """What every member extends; members that extend the same files share it.

    Raises:
        ConfigError: all files that cannot be extended, each with its members.
    """
    owners: dict[tuple[str, ...], list[str]] = {}
    for member, own in members.items():
        owners.setdefault(tuple(own.get("extends") or ()), []).append(member)
    found: dict[str, Layers] = {}
    known: Layers = {}
    problems = []
    for files, named in owners.items():
        try:
            found |= dict.fromkeys(named, read_bases(list(files), path, known))
        except ConfigError as error:
            also = f" (also {_few(named[1:])})" if named[1:] else ""
            problems += [f"{path}: members.{named[0]}.extends{also}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(problems)
    return found


def _without_bases(own: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in own.items() if key != "extends"}


def _bad_bases(member: str, own: Any) -> Iterator[str]:
    """Files are written as a list by `em.config.yaml_files`, if they are any."""
    given = own.get("extends") if isinstance(own, dict) else None
    if given is not None and (not isinstance(given, list) or not all(isinstance(one, str) for one in given)):
        yield f"members.{member}.extends: expected a file name or a list of them, got {show(given)}"


def _extending(member: str, over: Any) -> Iterator[str]:
    if isinstance(over, dict) and "extends" in over:
        yield f"members.{member}.extends: is a key of the file; write it there"


def _own_members(path: Path, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: members: expected a mapping of names to differences, got {show(raw)}")
    return {str(member): own for member, own in raw.items() if own is not None}


def _addressed(text: str, part: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Member -> what an override says of it; a name may hold a dot, which elsewhere ends a key."""
    rest = text.strip().removeprefix("members.")
    dotted = [name for name in names if "." in name and rest.startswith((f"{name}.", f"{name}="))]
    if dotted:
        name = max(dotted, key=len)
        return {name: override("members.x" + rest.removeprefix(name))["members"]["x"]}
    given = part["members"]
    if not isinstance(given, dict):
        raise ConfigError(f"{text}: expected members.NAME.KEY=VALUE, or members.NAME=null")
    return {str(member): over for member, over in given.items()}


def nearest(given: str, names: list[str]) -> str:
    """The name that may have been meant, or some of those there are."""
    near = get_close_matches(given, names, n=1)
    return f"did you mean {near[0]}?" if near else f"members: {_few(names)}"


def _few(names: list[str], most: int = 3) -> str:
    shown = len(names) if len(names) <= most + 1 else most
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more else "")


def _member_problems(member: str, layer: Any) -> Iterator[str]:
    if not PLAIN_NAME.fullmatch(member):
        yield (
            f"members.{member}: names a folder and stands in commands; use letters, digits, `.`, `_` and "
            "`-`, beginning with a letter or digit"
        )
    if not isinstance(layer, dict):
        yield f"members.{member}: expected a mapping, got {show(layer)}"
    elif "name" in layer:
        yield f"members.{member}.name: a member is named after its key; remove it"


def grouped(problems: dict[str, list[str]]) -> list[str]:
    """Every line once; one that only some members have is prefixed by their names, or their number."""
    lines = dict.fromkeys(line for listed in problems.values() for line in listed)
    owners = {line: [member for member, listed in problems.items() if line in listed] for line in lines}
    return [
        line if len(owned) == len(problems) else f"{_few(owned)}: {line}" for line, owned in owners.items()
    ]
