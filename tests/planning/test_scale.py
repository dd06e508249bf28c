from pathlib import Path

import pytest

from em.errors import ConfigError
from em.planning import scale

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == scale.page(), "run `make scale`"


def test_the_page_says_that_gpus_are_calculated() -> None:
    assert "calculated, not measured" in scale.page()


def test_the_check_that_it_shows_is_within_15_percent() -> None:
    rows = [line.split("|") for line in scale.page().partition("## The check")[2].splitlines() if "." in line]
    ratios = [float(row[5]) for row in rows if len(row) > 5]
    assert len(ratios) == 4
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios)


def test_a_page_without_figures_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "CHECKED", tmp_path / "none.json")
    with pytest.raises(ConfigError, match="plan_check.py --write"):
        scale.page()
