"""The key `sweep`: a grid of values, as members with short names that are safe in folders and commands."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from em.config.sweep_names import labels_of, name_of
from em.config.values import show
from em.errors import ConfigError

Grid = dict[str, list[Any]]  # dotted key -> values

MOST_MEMBERS = 1000  # SLURM's own limit of an array job, and a typing mistake is soon above it
SHAPE = "a mapping of keys to lists of values, or a list of such mappings"
OF_ALL = "is the same for all members; set it outside of the sweep"
REFUSED = {
    "name": "a member is named after its values; remove it",
    "description": "says something of the whole file; remove it",
    "members": "every member is crossed with the sweep already; remove it",
    "sweep": "a sweep holds no other; write its keys here",
    "extends": "is a key of the file; remove it",
    "compare": "one page compares all members; set it outside of the sweep",
    "runs_dir": OF_ALL,
    "overwrite": OF_ALL,
}


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Args:
        name: for example `weight-0.3_seed-1`; empty where nothing is swept.
        values: dotted key -> value.
    """

    name: str
    values: dict[str, Any]

    def layer(self) -> dict[str, Any]:
        """The values as a nested mapping."""
        made: dict[str, Any] = {}
        for key, value in self.values.items():
            *above, last = key.split(".")
            inner = made
            for part in above:
                inner = inner.setdefault(part, {})
            inner[last] = value
        return made


def points(sweep: Any) -> list[Point]:
    """Every combination of a grid, or of any of several grids; one that two grids share counts once.

    Names are made of the last parts of the keys and of the values. They depend on the keys, their order and
    the point's own values alone: a value more in a list renames nothing.

    Raises:
        ConfigError: all that is wrong with the section.
    """
    grids = _grids(sweep)
    count = sum(math.prod(map(len, grid.values())) for grid in grids)
    if count > MOST_MEMBERS:
        raise ConfigError(f"sweep: has {count} combinations, the most is {MOST_MEMBERS}; split it into files")
    labels = labels_of(list(dict.fromkeys(key for grid in grids for key in grid)))
    found: dict[str, Point] = {}
    for grid in grids:
        for values in product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            identity = json.dumps(point, sort_keys=True, default=str)
            found.setdefault(identity, Point(name_of(point, labels), point))
    return list(found.values())


def cross(members: list[str], swept: list[Point]) -> dict[str, tuple[str, Point]]:
    """Name -> member and point, for every member with every point.

    Args:
        members: names; the empty one stands for a file without members.

    Raises:
        ConfigError: two have one name, or there are too many.
    """
    crossed = list(product(members, swept))
    if len(crossed) > MOST_MEMBERS:
        raise ConfigError(
            f"sweep: makes {len(crossed)} members, the most is {MOST_MEMBERS}; split it into files"
        )
    problems = list(_collisions([("", point) for point in swept])) or list(_collisions(crossed))
    if problems:
        raise ConfigError(problems)
    return {_name(member, point): (member, point) for member, point in crossed}


def _name(member: str, point: Point) -> str:
    return "_".join(part for part in (member, point.name) if part)


def _collisions(crossed: list[tuple[str, Point]]) -> Iterator[str]:
    taken: dict[str, tuple[str, Point]] = {}
    for member, point in crossed:
        name = _name(member, point)
        other = taken.setdefault(name.casefold(), (member, point))  # a disk may not tell cases apart
        if point.name and not (other[0] == member and other[1] is point):  # by identity: 1 equals 1.0
            yield (
                f"sweep: {_told(*other)} and {_told(member, point)} would both be named {name}; "
                "leave one out, or write it under `members` with a name of its own"
            )


def overridden(sweep: Any, text: str, given: Any) -> Any:
    """The section with an override: a list replaces that of its key, null takes the key out.

    A key that no grid has is added to all of them; `sweep=null` leaves no sweep.

    Args:
        sweep: as the file has it, or None.
        text: the override, such as `sweep.kl.weight=[0.1,1]`.
        given: what it puts below `sweep`.

    Raises:
        ConfigError: it takes out what is not there, or the section cannot be used.
    """
    if not isinstance(given, dict):
        return given
    grids = [_once(list(_flat(grid))) for grid in _listed(sweep)] if sweep else [{}]
    for key, values in _flat(given):
        having = [grid for grid in grids if key in grid]
        if values is None and not having:
            known = ", ".join(dict.fromkeys(key for grid in grids for key in grid))
            raise ConfigError(f"{text}: the sweep has no {key}; it has {known or 'no keys'}")
        for grid in having or grids:
            if values is None:
                del grid[key]
            else:
                grid[key] = values
    return grids


def swept_key(swept: list[Point], part: Any) -> str | None:
    """The first swept key that an override would set too, or set something above or below."""
    for key in dict.fromkeys(key for point in swept for key in point.values):
        inner: Any = part
        for name in key.split("."):
            if not isinstance(inner, dict):
                return key
            if name not in inner:
                break
            inner = inner[name]
        else:
            return key
    return None


def _listed(sweep: Any) -> list[dict[str, Any]]:
    """One grid or several as a list of mappings."""
    grids = [sweep] if isinstance(sweep, dict) else sweep
    if not isinstance(grids, list) or not grids:
        raise ConfigError(f"sweep: expected {SHAPE}, got {show(sweep)}")
    problems = [
        f"sweep[{at}]: expected a mapping of keys to lists of values, got {show(grid)}"
        for at, grid in enumerate(grids)
        if not isinstance(grid, dict)
    ]
    if problems:
        raise ConfigError(problems)
    return grids


def _grids(sweep: Any) -> list[Grid]:
    grids = [list(_flat(grid)) for grid in _listed(sweep)]
    problems = [line for flat in grids for line in _problems(flat)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return [_once(flat) for flat in grids]


def _once(flat: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in flat]
    twice = [f"sweep.{key}: is given twice; keep one of the lists" for key in keys if keys.count(key) > 1]
    if twice:
        raise ConfigError(list(dict.fromkeys(twice)))
    return dict(flat)


def _flat(grid: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`kl: {weight: […]}` as `kl.weight: […]`, which is the same."""
    for key, value in grid.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _problems(flat: list[tuple[str, Any]]) -> Iterator[str]:
    if not flat:
        yield "sweep: names no key; add one, such as kl.weight: [0.1, 1], or remove the sweep (sweep=null)"
    for key, values in flat:
        if not all(key.split(".")):
            yield f"sweep.{key}: expected a key such as kl.weight"
        elif key.split(".")[0] in REFUSED:
            yield f"sweep.{key}: {REFUSED[key.split('.')[0]]}"
        elif not isinstance(values, list):
            yield f"sweep.{key}: expected a list of values, got {show(values)}"
        elif not values:
            yield f"sweep.{key}: the list is empty; give it a value, or remove the key"
        else:
            told = [json.dumps(value, sort_keys=True, default=str) for value in values]
            again = dict.fromkeys(one for one in told if told.count(one) > 1)
            yield from (f"sweep.{key}: {one} is given {told.count(one)} times; give it once" for one in again)
    for (key, _), (other, _) in combinations(flat, 2):
        if key == other:
            continue
        if f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}."):
            yield f"sweep.{key} and sweep.{other}: one lies within the other; sweep one of them"


def _told(member: str, point: Point) -> str:
    values = ", ".join(f"{key}: {show(value)}" for key, value in point.values.items())
    return f"{member + ' ' if member else ''}{{{values}}}"
