"""Checks a whole configuration and reports every problem at once."""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from em.config.build import NAMING, resolve
from em.config.facts import ModelFacts
from em.config.machine import MACHINE_RULES
from em.config.rules import RULES
from em.config.schema import Component, Config
from em.config.signature import signature
from em.config.values import INVALID, Problems, convert, section, show
from em.errors import ConfigError


def check(raw: dict[str, Any], facts: ModelFacts | None = None, *, files: bool = True) -> Config:
    """A typed configuration from a plain mapping.

    Components keep their form, with converted options; a callback gets its `kind` written out, and one
    set to null or false is left out.

    Args:
        facts: sizes of the backbone, for rules such as the range of layers; None skips those.
        files: also check what must be on this machine to train: data, models, packages, a W&B login. A
            finished run is read without that, for its data may be gone.

    Raises:
        ConfigError: one line for each problem, of types and names as of rules across keys.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"the configuration must be a mapping, got {show(raw)}")
    problems = Problems(list(_paths(Config, "")))
    config: Config = section(
        {**raw, "intervention": {}, "during_training": [], "callbacks": {}}, Config, "", problems
    )
    if raw.get("intervention") is not None:
        config.intervention = component(raw["intervention"], "interventions", "intervention", problems)
    else:
        config.intervention = Config().intervention
    config.during_training = _listed(raw.get("during_training"), "during_training", problems)
    config.callbacks = _callbacks(raw.get("callbacks"), problems)
    lines = list(problems.lines)
    for rule in (*RULES, *MACHINE_RULES) if files else RULES:
        # A rule that reads a key already reported judges its default, not what the user meant.
        lines += [line for line in rule(config, facts) if not problems.concern(line)]
    if lines:
        raise ConfigError(list(dict.fromkeys(lines)))
    return config


def judge_component(value: Any, key: str, problems: Problems) -> Component:
    """A judge; the members of a panel are judges too."""
    return component(value, "judges", key, problems)


def _judges(value: dict[str, Any], key: str, problems: Problems) -> dict[str, Component]:
    return {str(name): judge_component(one, f"{key}.{name}", problems) for name, one in value.items()}


# Options that are themselves components.
NESTED: dict[str, Callable[[dict[str, Any], str, Problems], Any]] = {
    "judge": judge_component,
    "judges": _judges,
}


def _paths(cls: Any, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(cls).items():
        yield prefix + name
        if is_dataclass(hint):
            yield from _paths(hint, f"{prefix}{name}.")


def _listed(value: Any, key: str, problems: Problems) -> list[Component]:
    """A list of interventions."""
    if value is None:
        return []
    if not isinstance(value, list):
        problems.add(key, f"expected a list of interventions, got {show(value)}")
        return []
    return [component(item, "interventions", f"{key}[{at}]", problems) for at, item in enumerate(value)]


def _callbacks(value: Any, problems: Problems) -> dict[str, Component]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.add("callbacks", f"expected a mapping of names to options, got {show(value)}")
        return {}
    found = {}
    for name, options in value.items():
        if options is None or options is False:
            continue
        options = {} if options is True else options
        if isinstance(options, dict) and not any(options.get(key) for key in NAMING):
            options = {"kind": str(name), **options}
            found[str(name)] = component(options, "callbacks", f"callbacks.{name}", problems, implied=True)
        else:
            found[str(name)] = component(options, "callbacks", f"callbacks.{name}", problems)
    return found


def component(value: Any, family: str, key: str, problems: Problems, implied: bool = False) -> Component:
    """Check the options of a component against the constructor that will take them."""
    if not isinstance(value, dict):
        problems.add(key, f"expected a mapping with kind or _target_, got {show(value)}")
        return {}
    naming = [name for name in NAMING if value.get(name) is not None]
    where = key if implied or len(naming) != 1 else f"{key}.{naming[0]}"
    try:
        target = resolve(value, family)
        taken = signature(target)
    except ConfigError as error:
        problems.lines += [f"{where}: {line}" for line in error.problems]
        problems.keys.add(key)
        return value
    checked: Component = {name: value[name] for name in naming}
    for name, item in value.items():
        if name in NAMING:
            continue
        if name in NESTED and isinstance(item, dict):
            made = NESTED[name](item, f"{key}.{name}", problems)
            checked |= {name: made}
        elif name in taken.options:
            made = convert(item, taken.options[name].annotation, f"{key}.{name}", problems)
            checked |= {} if made is INVALID else {name: made}
        elif taken.open:
            checked[name] = item
        else:
            problems.unknown(f"{key}.", str(name), list(taken.options))
    for option in taken.options.values():
        if option.required and option.name not in value:
            problems.add(f"{key}.{option.name}", f"missing; {target.rpartition('.')[2]} needs it")
    return checked
