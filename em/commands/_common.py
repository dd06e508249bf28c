"""What several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em.config.schema import EvaluateConfig

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any

SETTINGS = "key=value of the evaluation (EvaluateConfig in em/config/schema.py), for example samples=20"


def add_judging(parser: argparse.ArgumentParser) -> None:
    """The options of commands that judge."""
    parser.add_argument("settings", nargs="*", metavar="key=value", default=[], help=SETTINGS)
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--yes", action="store_true", help="go on although the judge will cost much")


def agreed(config: EvaluateConfig, yes: bool) -> EvaluateConfig:
    """The settings with `--yes` passed on to the judges that spend money."""
    if yes:
        config.judge = _agreed(config.judge)
    return config


def _agreed(judge: dict[str, Any]) -> dict[str, Any]:
    if judge.get("kind") == "panel":
        return {**judge, "judges": {name: _agreed(one) for name, one in judge.get("judges", {}).items()}}
    return {**judge, "yes": True} if judge.get("kind") == "openai" else judge
