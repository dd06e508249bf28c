"""What can be reproduced: conf/reproduce/figures.yaml and conf/reproduce/models.yaml, read and checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from em.analyses.base import Analysis
from em.config import build
from em.config.check import component
from em.config.schema import Component
from em.config.values import Problems, show
from em.config.yaml_files import read_yaml
from em.errors import ConfigError

FOLDER = Path("conf/reproduce")
TEXTS = ("title", "paper", "about")
Named = TypeVar("Named")


@dataclass(frozen=True)
class FigurePlan:
    """One experiment of the paper.

    Args:
        experiment: its number, for the order on pages.
        paper: where the paper shows it.
        about: what to look for, for the page.
        analyses: name -> what is measured, built by `built`.
    """

    name: str
    experiment: int
    title: str
    paper: str
    about: str
    analyses: dict[str, Component]

    def built(self) -> dict[str, Analysis]:
        """The analyses, ready to measure.

        Raises:
            ConfigError: options that do not fit together.
        """
        made = {}
        for name, options in self.analyses.items():
            try:
                made[name] = build(options, "analyses")
            except ConfigError as error:
                raise ConfigError([f"{self.name}.{name}: {line}" for line in error.problems]) from error
        return made

    def members(self) -> list[str]:
        """The runs that it needs, by their names in the pool."""
        return members_of(self.built())


@dataclass(frozen=True)
class Model:
    """A model that the experiments run on.

    Args:
        members: the file with the pool of runs.
        overrides: on top of it, such as backbone.model=….
        needs: hardware and time, in words.
    """

    name: str
    members: Path
    overrides: tuple[str, ...]
    needs: str


def members_of(analyses: Mapping[str, Analysis]) -> list[str]:
    """The runs that analyses need, each once."""
    return list(dict.fromkeys(name for one in analyses.values() for name in one.members))


def read_figures(path: Path = FOLDER / "figures.yaml") -> dict[str, FigurePlan]:
    """All figures by name, in the order of their experiments.

    Raises:
        ConfigError: all problems of the file at once.
    """
    problems: list[str] = []
    found = []
    for name, body in _mapping(path, "figures").items():
        problems += [f"{path}: {name}{line}" for line in _figure_problems(body)]
        if not problems:
            checked, more = _analyses(name, body["analyses"])
            problems += [f"{path}: {line}" for line in more]
            texts = {key: " ".join(body[key].split()) for key in TEXTS}
            found.append(FigurePlan(name, body["experiment"], **texts, analyses=checked))
    if problems:
        raise ConfigError(problems)
    return {one.name: one for one in sorted(found, key=lambda one: one.experiment)}


def read_models(path: Path = FOLDER / "models.yaml") -> dict[str, Model]:
    """All models by name.

    Raises:
        ConfigError: all problems of the file at once.
    """
    problems: list[str] = []
    found = {}
    for name, body in _mapping(path, "models").items():
        problems += [f"{path}: {name}{line}" for line in _model_problems(body)]
        if not problems:
            given = tuple(body.get("set") or ())
            found[name] = Model(name, Path(body["members"]), given, " ".join(str(body["needs"]).split()))
    if problems:
        raise ConfigError(problems)
    return found


def named(what: str, name: str, among: Mapping[str, Named]) -> Named:
    """One of them.

    Raises:
        ConfigError: there is none of this name; says which there are.
    """
    if name in among:
        return among[name]
    near = get_close_matches(name, list(among), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(among)}"
    raise ConfigError(f"{what}={name}: not known; {hint}")


def _mapping(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run the command in the folder of em")
    raw = read_yaml(path)
    if set(raw) != {key} or not isinstance(raw[key], dict) or not raw[key]:
        raise ConfigError(f"{path}: expected the one key {key}: with a mapping of names, got {show(raw)}")
    return {str(name): body for name, body in raw[key].items()}


def _figure_problems(body: Any) -> Iterator[str]:
    if not isinstance(body, dict):
        yield f": expected a mapping, got {show(body)}"
        return
    known = {"experiment", *TEXTS, "analyses"}
    yield from (f".{key}: unknown key; known: {', '.join(sorted(known))}" for key in set(body) - known)
    yield from (f".{key}: expected text" for key in TEXTS if not isinstance(body.get(key), str))
    if type(body.get("experiment")) is not int:
        yield f".experiment: expected a whole number, got {show(body.get('experiment'))}"
    if not isinstance(body.get("analyses"), dict) or not body["analyses"]:
        yield f".analyses: expected a mapping of names to options, got {show(body.get('analyses'))}"


def _analyses(figure: str, given: dict[str, Any]) -> tuple[dict[str, Component], list[str]]:
    problems = Problems()
    checked = {
        str(name): component(body, "analyses", f"{figure}.analyses.{name}", problems)
        for name, body in given.items()
    }
    return checked, problems.lines


def _model_problems(body: Any) -> Iterator[str]:
    if not isinstance(body, dict):
        yield f": expected a mapping, got {show(body)}"
        return
    known = {"members", "set", "needs"}
    yield from (f".{key}: unknown key; known: {', '.join(sorted(known))}" for key in set(body) - known)
    yield from (
        f".{key}: expected text" for key in ("members", "needs") if not isinstance(body.get(key), str)
    )
    given = body.get("set") or []
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        yield f".set: expected a list of overrides such as backbone.model=NAME, got {show(given)}"
