from pathlib import Path
from typing import Any

import pytest

from em.errors import ConfigError, RunError
from em.figures.model import Table
from em.reproduce.claims import read_claims
from em.reproduce.figures import FigurePlan, Model
from em.reproduce.results import markdown, read_remarks, text, write_results
from em.reproduce.run import reproduce, stored_result
from tests.reproduce.conftest import write

REMARK = {"figure": "first", "when": {"above": "holds"}, "text": "It is\n  so."}


def remarks(tmp_path: Path, *listed: Any) -> Path:
    return write(tmp_path / "discussion.yaml", {"remarks": list(listed)})


def test_the_page_has_every_verdict_and_its_figures(
    plans: dict[str, FigurePlan], model: Model, folder: Path, tmp_path: Path
) -> None:
    claims = read_claims(folder / "claims.yaml")
    made = [reproduce(plan, model, claims, folder / "out") for plan in plans.values()]
    said = read_remarks(
        remarks(tmp_path, REMARK, {**REMARK, "when": {"above": "does not hold"}, "text": "It is not so."}),
        [one.id for one in claims],
    )
    page = write_results(made, said, "python -m em results", tmp_path / "docs" / "results.md")
    shown = page.read_text(encoding="utf-8")
    assert "Of 4 claims 1 hold, 1 do not hold and 2 are not decidable." in shown
    assert "It is so." in shown and "It is not so." not in shown
    assert "![It &lt;b&gt;. What is given. Given too.](results/first-here-it.svg)" in shown
    assert (page.parent / "results" / "first-here-it.svg").is_file()
    assert "Not measured: broken: no such thing" in shown
    assert "- a &lt;note&gt;" in shown and "**First | figure.**" in shown
    assert "make reproduce FIG=first MODEL=tiny" in shown


def test_nothing_measured_makes_no_page(plans: dict[str, FigurePlan], model: Model, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="make reproduce FIG=all first"):
        write_results([stored_result(plans["first"], model, [], tmp_path)], [], "x", tmp_path / "r.md")
    assert not (tmp_path / "r.md").exists()


def test_cells_are_no_markup() -> None:
    table = Table("t", "T", ["a|b", "c"], [["x | <script>*y*", 0.12345], ["[l](u)\nnext", None]])
    assert markdown(table).splitlines() == [
        r"| a\|b | c |",
        "| --- | --- |",
        r"| x \| &lt;script&gt;\*y\* | 0.1235 |",
        r"| \[l\](u) next | – |",
    ]


def test_text_stays_on_one_line() -> None:
    assert text("a\n\n# b `c` _d_") == r"a # b \`c\` \_d\_"


@pytest.mark.parametrize(
    ("remark", "message"),
    [
        ({**REMARK, "when": {"abov": "holds"}}, r"remarks\[0\].when: there is no claim 'abov'"),
        (
            {**REMARK, "when": {"above": "hold"}},
            "expected one of holds, does not hold, not decidable, got 'hold'",
        ),
        ({"figure": "first", "text": "x"}, "expected figure, when"),
        ("x", "expected figure, when"),
    ],
)
def test_a_remark_that_could_never_show_is_refused(tmp_path: Path, remark: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_remarks(remarks(tmp_path, remark), ["above"])
