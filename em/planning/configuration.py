"""Configurations to plan: checked like any other, but data and models need not be on this machine."""

from collections.abc import Iterable
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from em.config import check
from em.config.compose import override
from em.config.schema import BackboneConfig, Config
from em.config.yaml_files import first_line, merge, read_extended
from em.errors import ConfigError
from em.planning.shapes import shape_of


def configurations(path: Path, overrides: Iterable[str]) -> dict[str, Config]:
    """The configurations of a file by name: one, or one for each member of a suite.

    Raises:
        ConfigError: all problems of a configuration at once.
    """
    raw = read_extended(path)
    raw.setdefault("name", path.stem)
    parts = [override(text) for text in overrides]
    members = raw.pop("members", None)
    if members is None:
        misplaced = [text for text, part in zip(overrides, parts, strict=True) if "members" in part]
        if misplaced:
            raise ConfigError(f"{misplaced[0]}: {path} is not a suite; it has no members")
        return {str(raw["name"]): _checked(reduce(merge, parts, raw))}
    if not isinstance(members, dict):
        raise ConfigError(f"{path}: members: expected a mapping of names to differences")
    everywhere = [{key: value for key, value in part.items() if key != "members"} for part in parts]
    changed: dict[str, Any] = reduce(merge, [part["members"] for part in parts if "members" in part], {})
    unknown = [str(name) for name in changed if name not in members]
    if unknown:
        raise ConfigError(f"{path} has no member {unknown[0]!r}; members: {', '.join(members)}")
    found = {}
    for name, own in members.items():
        if own is None or (name in changed and changed[name] is None):
            continue
        body = reduce(merge, [own, *everywhere, changed.get(name, {})], raw)
        found[str(name)] = _checked({**body, "name": f"{raw['name']}/{name}"})
    if not found:
        raise ConfigError(f"{path}: members: none is left to plan")
    return found


def _checked(raw: dict[str, Any]) -> Config:
    if "sweep" in raw:
        raise ConfigError("sweep: plan one of its runs: add sweep=null and give its values as key=value")
    raw = {key: value for key, value in raw.items() if key != "description"}
    try:
        plain = OmegaConf.to_container(OmegaConf.create(raw), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    assert isinstance(plain, dict)
    resolved = {str(key): value for key, value in plain.items()}
    backbone = resolved.get("backbone")
    model = (backbone if isinstance(backbone, dict) else {}).get("model", BackboneConfig.model)
    facts = shape_of(model).facts if isinstance(model, str) else None
    return check(resolved, facts, files=False)
