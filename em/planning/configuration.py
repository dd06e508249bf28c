"""Configurations to plan: checked like any other, but data and models need not be on this machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from em.config import check
from em.config.bodies import read_bodies, resolved
from em.config.schema import BackboneConfig, Config
from em.planning.shapes import shape_of


def configurations(path: Path, overrides: Iterable[str]) -> dict[str, Config]:
    """The configurations of a file by name: one, or one for each member of a suite.

    Raises:
        ConfigError: all problems of a configuration at once.
    """
    return {name: _checked(body) for name, body in read_bodies(path, overrides).bodies.items()}


def _checked(raw: dict[str, Any]) -> Config:
    plain = resolved(raw)
    backbone = plain.get("backbone")
    model = (backbone if isinstance(backbone, dict) else {}).get("model", BackboneConfig.model)
    facts = shape_of(model).facts if isinstance(model, str) else None
    return check(plain, facts, files=False)
