"""From a YAML file and overrides to checked configurations: one experiment, or a suite of members."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from em.config.check import check
from em.config.facts import ModelFacts, model_facts
from em.config.members import Override, decided, grouped, members_of, override
from em.config.schema import BackboneConfig, Config
from em.config.sweep import Point, overridden, points
from em.config.values import show
from em.config.yaml_files import first_line, merge, read_extended
from em.errors import ConfigError


@dataclass(frozen=True)
class Experiment:
    """One checked configuration, and the plain mapping it was made from."""

    config: Config
    raw: dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """Experiments that share a file; a member is named `<suite>/<member>`."""

    name: str
    path: Path
    members: dict[str, Config]
    raw: dict[str, Any]


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment | Suite:
    """Read, merge, resolve and check a configuration.

    A file may extend others (`extends: base.yaml`, or a list), relative to itself; it is a suite if it has
    `members` or `sweep` (em/config/sweep.py); with both, every member is crossed with the sweep. The key
    `description` is free text. An override `kl.weight=3` applies to every member,
    `members.narrow.kl.weight=3` to one and over the former; `members.narrow=null` drops one;
    `sweep.kl.weight=[0.1,1]` replaces a list.

    Raises:
        ConfigError: all problems of the configuration, or of all members, at once.
    """
    path = Path(path)
    raw = read_extended(path)
    raw.setdefault("name", path.stem)
    raw.pop("description", None)
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
    if for_members and not raw.keys() & {"members", "sweep"}:
        raise ConfigError(f"{for_members[0][0]}: {path} is not a suite; it has no members")
    if raw.keys() & {"members", "sweep"}:
        return _suite(path, raw, everywhere, for_members)
    plain, config, problems = _checked(reduce(merge, (part for _, part in everywhere), raw))
    if config is None:
        raise ConfigError(problems)
    return Experiment(config, plain)


def to_dict(config: Config) -> dict[str, Any]:
    """A configuration as plain mappings, with every default written out."""
    return asdict(config)


def to_yaml(config: Config) -> str:
    """A configuration as YAML that `load` reads back to the same configuration."""
    return str(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=100))


def load_comparison(run: Path, conf: Path | None, overrides: Iterable[str]) -> Config:
    """The configuration of a comparison: the first run's, with other settings of `compare` and `data`.

    Args:
        run: its directory.
        conf: a YAML file whose sections `compare` and `data` come on top.
        overrides: `draws=20` is compare.draws; `data.root=…` is of the data.

    Raises:
        ConfigError: all problems at once.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run}: no config.yaml; give the directory of a trained run")
    raw = read_extended(path)
    if conf is not None:
        other = read_extended(conf)
        raw = merge(raw, {key: other[key] for key in ("compare", "data") if key in other})
    for text in overrides:
        part = override(text)
        raw = merge(raw, part if "data" in part or "compare" in part else {"compare": part})
    return check(_resolved(raw), files=False)


def _suite(path: Path, raw: dict[str, Any], everywhere: list[Override], for_members: list[Override]) -> Suite:
    parts = [part for _, part in everywhere]
    rest = {key: value for key, value in raw.items() if key not in ("members", "sweep")}
    shared = reduce(merge, parts, rest)
    name = _suite_name(path, shared)
    swept = points(raw["sweep"]) if "sweep" in raw else [Point("", {})]
    lost = [line for text, part in everywhere for line in decided(text, swept, part)]
    if lost:
        raise ConfigError(lost)
    members = members_of(path, raw, swept, for_members)
    plain, configs, problems = {}, {}, {}
    for member, layers in members.items():
        body: dict[str, Any] = reduce(merge, [layers[0], *parts, *layers[1:]], shared)
        body = {**body, "name": f"{name}/{member}"}
        body.pop("description", None)
        plain[member], config, problems[member] = _checked(body)
        if config is not None:
            configs[member] = config
    if any(problems.values()):
        raise ConfigError(grouped(problems))
    return Suite(name, path, configs, {"name": name, "members": plain})


def _suite_name(path: Path, shared: dict[str, Any]) -> str:
    try:
        name = OmegaConf.create(shared)["name"]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: name: {first_line(error)}") from error
    if not isinstance(name, str):
        raise ConfigError(f"{path}: name: expected text, got {show(name)}")
    return name


def _checked(raw: dict[str, Any]) -> tuple[dict[str, Any], Config | None, list[str]]:
    """The resolved mapping, its configuration or None, and the problems that prevent it."""
    try:
        resolved = _resolved(raw)
    except ConfigError as error:
        return raw, None, error.problems
    problems, facts = [], None
    try:
        facts = _facts(resolved.get("backbone"))
    except ConfigError as error:
        problems += error.problems
    try:
        config = check(resolved, facts)
    except ConfigError as error:
        return resolved, None, [*problems, *error.problems]
    return resolved, None if problems else config, problems


def _resolved(raw: dict[str, Any]) -> dict[str, Any]:
    """A mapping with its interpolations replaced by what they name."""
    try:
        plain = OmegaConf.to_container(OmegaConf.create(raw), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(where + first_line(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _facts(backbone: Any) -> ModelFacts | None:
    """Facts of a model that is not checked yet, so it may be anything."""
    given = backbone if isinstance(backbone, dict) else {}
    model, revision = given.get("model", BackboneConfig.model), given.get("revision")
    revision = revision if isinstance(revision, str) else None
    return model_facts(model, revision) if isinstance(model, str) else None
