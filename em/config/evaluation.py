"""The settings of an evaluation: those of a run's judge_eval callback, changed by key=value."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

from em.config.check import judge_component
from em.config.compose import override
from em.config.evaluation_rules import evaluation_problems
from em.config.schema import EvaluateConfig
from em.config.values import Problems, section
from em.config.yaml_files import merge, read_extended
from em.errors import ConfigError

CALLBACK = "judge_eval"


def load_evaluation(run: Path | None, overrides: Iterable[str]) -> EvaluateConfig:
    """Settings of an evaluation from the command line.

    Args:
        run: whose callback of the kind judge_eval gives the settings to start from; without one, or
            without a run, the defaults.
        overrides: `samples=5`, `judge.kind=openai`, `judge={kind: local, model: …}`.

    Raises:
        ConfigError: all problems at once.
    """
    raw = {} if run is None else _of_run(run)
    parts = [override(text) for text in overrides]
    for part in parts:
        judge = part.get("judge")
        if isinstance(judge, dict) and "kind" in judge:
            raw.pop("judge", None)  # options of another kind of judge would be unknown to this one
    return evaluation(reduce(merge, parts, raw))


def evaluation(raw: Mapping[str, Any]) -> EvaluateConfig:
    """Checked settings.

    Raises:
        ConfigError: all problems at once.
    """
    problems = Problems([one.name for one in fields(EvaluateConfig)])
    judge = raw.get("judge")
    config: EvaluateConfig = section(
        {key: value for key, value in raw.items() if key != "judge"}, EvaluateConfig, "", problems
    )
    if judge is not None:
        config.judge = judge_component(judge, "judge", problems)
    lines = [*problems.lines, *evaluation_problems(config)]
    if lines:
        raise ConfigError(lines)
    return config


def _of_run(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run}: no config.yaml; give the directory of a trained run")
    callbacks = read_extended(path).get("callbacks") or {}
    options = [one for one in callbacks.values() if isinstance(one, dict) and one.get("kind") == CALLBACK]
    # The one at the end of training asks most.
    options.sort(key=lambda one: "end" in (one.get("at") or []), reverse=True)
    known = {one.name for one in fields(EvaluateConfig)}
    return {key: value for key, value in (options[0] if options else {}).items() if key in known}
