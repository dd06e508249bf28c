"""From a YAML file and overrides to checked configurations: one experiment, or a suite of members."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from em.config.bodies import DEFINE, read_bodies, resolved
from em.config.check import check
from em.config.data_files import DATA_VARIABLE, corpora, find, source_lists
from em.config.facts import ModelFacts, model_facts
from em.config.machine import data_files
from em.config.members import grouped, nearest, override
from em.config.schema import BackboneConfig, Config
from em.config.yaml_files import merge, read_extended
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
    `members` or `sweep` (em/config/sweep.py); with both, every member is crossed with the sweep. A member
    may extend files too, as if the suite's file extended them for this member alone. The key `description`
    is free text; `define` holds values for interpolations such as `${define.layers}`.

    An override `kl.weight=3` applies to every member, `members.narrow.kl.weight=3` to one and over the
    former; `members.narrow=null` drops one; `sweep.kl.weight=[0.1,1]` replaces a list.

    Raises:
        ConfigError: all problems of the configuration, or of all members, at once.
    """
    path = Path(path)
    read = read_bodies(path, overrides)
    plain, configs, problems = {}, {}, {}
    for name, body in read.bodies.items():
        plain[name], config, problems[name] = _checked(body)
        if config is not None:
            configs[name] = config
    if any(problems.values()):
        raise ConfigError(grouped(problems))
    if read.suite:
        return Suite(read.name, path, configs, {"name": read.name, "members": plain})
    return Experiment(configs[read.name], plain[read.name])


def load_pool(
    path: str | Path, overrides: Iterable[str] = (), wanted: Iterable[str] | None = None
) -> tuple[dict[str, Config], dict[str, str]]:
    """Some members of a suite, of which those whose data is not on this machine stop no other.

    Args:
        path, overrides: as of `load`.
        wanted: names of members; by default all.

    Returns:
        The configuration of every other member, and for a member whose only problem are files of data that
        are not here, which they are.

    Raises:
        ConfigError: the file is no suite, has no such member, or all other problems of those wanted.
    """
    path = Path(path)
    read = read_bodies(path, overrides)
    if not read.suite:
        raise ConfigError(f"{path} is not a suite; it has no members")
    names = list(read.bodies) if wanted is None else list(dict.fromkeys(wanted))
    known = list(read.bodies)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError([f"{path} has no member {name!r}; {nearest(name, known)}" for name in unknown])
    configs: dict[str, Config] = {}
    absent: dict[str, str] = {}
    problems: dict[str, list[str]] = {}
    for name in names:
        plain, config, problems[name] = _checked(read.bodies[name])
        if config is not None:
            configs[name] = config
        elif (files := _absent(plain, problems[name])) is not None:
            absent[name], problems[name] = files, []
    if any(problems.values()):
        raise ConfigError(grouped(problems))
    return configs, absent


def _absent(plain: dict[str, Any], problems: list[str]) -> str | None:
    """The files of data that are not here, if that is all that is wrong."""
    try:
        config = check(plain, files=False)
    except ConfigError:
        return None
    if not set(problems) <= set(data_files(config, None)):
        return None
    root = config.data.root
    paths = [source.path for _, sources in source_lists(config) for source in sources]
    lost = [path for path in paths if path is not None and not find(path, root)]
    texts = [corpus.path for _, corpus in corpora(config) if corpus.path is not None]
    lost += [path for path in texts if not find(path, root, folders=True)]
    files = ", ".join(dict.fromkeys(lost))
    return f"data that is not here: {files}; set {DATA_VARIABLE} or data.root to the folder that holds it"


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
        raw = merge(raw, {key: other[key] for key in ("compare", "data", DEFINE) if key in other})
    for text in overrides:
        part = override(text)
        raw = merge(raw, part if "data" in part or "compare" in part else {"compare": part})
    return check(resolved(raw), files=False)


def _checked(raw: dict[str, Any]) -> tuple[dict[str, Any], Config | None, list[str]]:
    """The resolved mapping, its configuration or None, and the problems that prevent it."""
    try:
        plain = resolved(raw)
    except ConfigError as error:
        return raw, None, error.problems
    problems, facts = [], None
    try:
        facts = _facts(plain.get("backbone"))
    except ConfigError as error:
        problems += error.problems
    try:
        config = check(plain, facts)
    except ConfigError as error:
        return plain, None, [*problems, *error.problems]
    return plain, None if problems else config, problems


def _facts(backbone: Any) -> ModelFacts | None:
    """Facts of a model that is not checked yet, so it may be anything."""
    given = backbone if isinstance(backbone, dict) else {}
    model, revision = given.get("model", BackboneConfig.model), given.get("revision")
    revision = revision if isinstance(revision, str) else None
    return model_facts(model, revision) if isinstance(model, str) else None
