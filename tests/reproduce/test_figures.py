from pathlib import Path
from typing import Any

import pytest

from em.errors import ConfigError
from em.reproduce.figures import FigurePlan, named, read_figures, read_models
from tests.reproduce.conftest import FIGURES, GIVEN, write

ROOT = Path(__file__).parents[2]


def changed(tmp_path: Path, **changes: Any) -> Path:
    return write(tmp_path / "figures.yaml", {"figures": {"first": {**FIGURES["first"], **changes}}})


def test_figures_come_in_the_order_of_experiments(plans: dict[str, FigurePlan]) -> None:
    assert list(plans) == ["second", "first"]
    assert plans["first"].about == "What to look for."
    assert plans["first"].members() == ["vector", "lora"]


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    wrong = changed(tmp_path, titel="x", experiment="one", paper=None)
    with pytest.raises(ConfigError) as told:
        read_figures(wrong)
    lines = [line.partition("figures.yaml: ")[2] for line in told.value.problems]
    assert lines == [
        "first.titel: unknown key; known: about, analyses, experiment, paper, title",
        "first.paper: expected text",
        "first.experiment: expected a whole number, got 'one'",
    ]


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        ({"kind": "ratez", "members": []}, "unknown kind 'ratez' in em/analyses; did you mean rates"),
        ({"_target_": GIVEN, "members": ["a"], "lo": 1}, r"first.analyses.x.lo: unknown"),
        ({"_target_": GIVEN}, "first.analyses.x.*members"),
        ({"_target_": GIVEN, "members": "a"}, "first.analyses.x.members: expected a list"),
    ],
)
def test_options_of_an_analysis_are_checked(tmp_path: Path, analysis: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_figures(changed(tmp_path, analyses={"x": analysis}))


@pytest.mark.parametrize("text", ["figures: []", "figures: {}", "models: {a: 1}", "figures: {a: 1}"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected"):
        read_figures(path)


def test_a_missing_file_says_where_to_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; run the command in the folder of em"):
        read_models(tmp_path / "models.yaml")


def test_a_name_that_is_not_there_has_a_neighbour() -> None:
    with pytest.raises(ConfigError, match="FIG=stabilty: not known; did you mean stability"):
        named("FIG", "stabilty", {"stability": 1, "em": 2})
    with pytest.raises(ConfigError, match="there are stability, em"):
        named("FIG", "x", {"stability": 1, "em": 2})


def test_the_projects_own_files_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    figures, models = read_figures(), read_models()
    assert sorted({one.experiment for one in figures.values()}) == list(range(1, 11))
    assert all(one.built() for one in figures.values())
    assert {"smollm2", "qwen2.5-14b"} <= set(models)
    assert all(one.members.is_file() for one in models.values())
