"""Components by name: from `kind` or `_target_` to a class, and to an object.

A kind is a module of `em/<family>/` with a subclass named after it in CamelCase, so that a new kind is one
new file: `kind: steering_vector` of the interventions is em.interventions.steering_vector.SteeringVector.
"""

import ast
import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from em.config.definitions import read
from em.config.schema import Component
from em.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
NAMING = ("kind", "_target_")


def kinds(family: str) -> list[str]:
    """The short names of a family, from its files.

    Raises:
        ConfigError: a file of the family cannot be parsed.
    """
    names = sorted(path.stem for path in (PACKAGE / family).glob("*.py"))
    return [name for name in names if not name.startswith("_") and _class_of(name, family)]


def _class_of(kind: str, family: str) -> str | None:
    """The class of a kind; acronyms may be written in capitals (kl_drift: KLDrift)."""
    for name, node in read(f"em.{family}.{kind}").definitions.items():
        # A class without a base is a helper: every kind implements its family's contract.
        if isinstance(node, ast.ClassDef) and node.bases and name.lower() == kind.replace("_", "").lower():
            return name
    return None


def resolve(component: Component, family: str) -> str:
    """The dotted path of a component's class.

    Raises:
        ConfigError: neither or both of kind and _target_ are given, or the kind does not exist.
    """
    given = {name: component[name] for name in NAMING if component.get(name) is not None}
    if len(given) != 1:
        both = "not both" if given else f"for example kind: {(kinds(family) or ['NAME'])[0]}"
        raise ConfigError(f"give kind or _target_, {both}")
    ((name, value),) = given.items()
    if not isinstance(value, str):
        raise ConfigError(f"expected text, got {value!r}")
    if name == "_target_":
        return value
    known = kinds(family)
    if value not in known:
        near = get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known kinds: {', '.join(known) or 'none'}"
        raise ConfigError(f"unknown kind {value!r} in em/{family}; {hint}")
    return f"em.{family}.{value}.{_class_of(value, family)}"


def build(component: Component, family: str, **extra: Any) -> Any:
    """Import a component's class and call it with its options and `extra`.

    Raises:
        ConfigError: the class does not exist or its module cannot be imported.
    """
    target = resolve(component, family)
    module, _, name = target.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{target}: cannot be imported ({error})") from error
    except AttributeError as error:
        raise ConfigError(f"{target}: {module} has no {name}") from error
    given = {key: value for key, value in component.items() if key not in NAMING}
    return made(**given, **extra)
