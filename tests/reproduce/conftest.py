"""A pool of tiny runs, a file of figures and one of claims, in a folder of their own."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from em.reproduce.figures import FigurePlan, Model, read_figures
from tests.comparison.trained import LORA_1, VECTOR, raw_config

GIVEN = "tests.reproduce.given.Given"
FIGURES: dict[str, Any] = {
    "first": {
        "experiment": 2,
        "title": "First | figure",
        "paper": "Figure 1",
        "about": "What to\nlook for.",
        "analyses": {
            "here": {"_target_": GIVEN, "members": ["vector", "lora"], "low": 1.0, "high": 3.0},
            "there": {"_target_": GIVEN, "members": ["vector"], "low": -1.0, "high": 1.0},
        },
    },
    "second": {
        "experiment": 1,
        "title": "Second",
        "paper": "Figure 2",
        "about": "Nothing.",
        "analyses": {"broken": {"_target_": GIVEN, "members": ["lora"], "error": "no such thing"}},
    },
}
CLAIMS: dict[str, Any] = {
    "above": {"figure": "first", "statistic": "here/number", "expect": {"above": 0}},
    "below": {"figure": "first", "statistic": "here/number", "expect": {"below": 0}},
    "unclear": {"figure": "first", "statistic": "there/number", "expect": {"above": 0}},
    "lost": {"figure": "second", "statistic": "broken/number", "expect": {"above": 0}},
}


def write(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With pool.yaml, figures.yaml and claims.yaml."""
    folder = tmp_path_factory.mktemp("reproduced")
    raw = raw_config(folder, "pool", trainer={"max_steps": 2})
    raw["members"] = {"vector": {"intervention": VECTOR}, "lora": {"intervention": LORA_1}}
    raw["members"]["absent"] = {"data": {"train": [{"path": "nowhere.jsonl"}]}}
    write(folder / "pool.yaml", raw)
    write(folder / "figures.yaml", {"figures": FIGURES})
    paper = {"where": "Figure 1", "reported": "more"}
    claims = {name: {"claim": f"It is {name}.", "paper": paper, **body} for name, body in CLAIMS.items()}
    write(folder / "claims.yaml", {"claims": claims})
    return folder


@pytest.fixture
def plans(folder: Path) -> dict[str, FigurePlan]:
    return read_figures(folder / "figures.yaml")


@pytest.fixture
def model(folder: Path) -> Model:
    return Model("tiny", folder / "pool.yaml", (), "nothing")
