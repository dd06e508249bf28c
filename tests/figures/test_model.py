"""Data tables, text alternatives and refusals of figures, with exact expectations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from em.errors import MeasurementError
from em.figures.model import Bars, BarSeries, Curves, Mark, Matrix, Path, Paths, Series, Table
from em.figures.words import number, plain, short_names, shorten

ABOUT = ("t", "Title", "What it is.", "Band: 95%.")


def curves(**changes: Any) -> Curves:
    series = [
        Series("general/0", [0, 1, 2], [3.0, None, 1.5], [2.5, None, 1.0], [3.5, None, 2.0], group="general"),
        Series("random", [0, 2], [3.0, 3.25], role="control"),
    ]
    options: dict[str, Any] = {"series": series, "marks": [Mark("x", 1.5, "trained")], **changes}
    return Curves(*ABOUT, "norm", "loss", **options)


def bars(**changes: Any) -> Bars:
    series = [BarSeries("a", [1.0, None], [0.5, None], [1.5, None]), BarSeries("b", [-2.0, 3.0], group="g")]
    options: dict[str, Any] = {"categories": ["medical", "sports"], "series": series, **changes}
    return Bars(*ABOUT, "shift", **options)


def matrix(**changes: Any) -> Matrix:
    options: dict[str, Any] = {
        "rows": ["a", "b", "c"],
        "columns": ["a", "b", "c"],
        "values": [[1.0, 0.5, -0.25], [0.5, 1.0, None], [-0.25, None, 0.9]],
        "value_label": "cosine",
        **changes,
    }
    return Matrix(*ABOUT, **options)


def paths(**changes: Any) -> Paths:
    drawn = [Path("g/0", [0.0, 1.0, 0.5], [0.0, 2.0, -1.0], ["0", "10", "20"], group="g")]
    return Paths(*ABOUT, "along 1", "along 2", **{"paths": drawn, **changes})


def test_curves_table_has_every_point_with_its_bounds_and_every_mark() -> None:
    table = curves().table()
    assert (table.id, table.title, table.definition) == ("t", "Title", "What it is.")
    assert table.columns == ["series", "group", "role", "norm", "loss", "low", "high"]
    assert table.rows == [
        ["general/0", "general", "solution", 0, 3.0, 2.5, 3.5],
        ["general/0", "general", "solution", 1, None, None, None],
        ["general/0", "general", "solution", 2, 1.5, 1.0, 2.0],
        ["random", "random", "control", 0, 3.0, None, None],
        ["random", "random", "control", 2, 3.25, None, None],
        ["trained", "trained", "mark", 1.5, None, None, None],
    ]


def test_bars_table() -> None:
    table = bars(marks=[Mark("x", 2.0, "base")]).table()
    assert table.columns == ["category", "series", "group", "role", "shift", "low", "high"]
    assert table.rows == [
        ["medical", "a", "a", "solution", 1.0, 0.5, 1.5],
        ["medical", "b", "g", "solution", -2.0, None, None],
        ["sports", "a", "a", "solution", None, None, None],
        ["sports", "b", "g", "solution", 3.0, None, None],
        [None, "base", "base", "mark", 2.0, None, None],
    ]


def test_matrix_table_has_one_row_for_each_cell() -> None:
    bounds: list[list[float | None]] = [[0.0, 0.0]]
    high: list[list[float | None]] = [[1.0, 2.0]]
    table = Matrix(*ABOUT, ["r"], ["x", "y"], [[0.5, 1.5]], bounds, high).table()
    assert table.columns == ["row", "column", "value", "low", "high"]
    assert table.rows == [["r", "x", 0.5, 0.0, 1.0], ["r", "y", 1.5, 0.0, 2.0]]
    assert [row[2] for row in matrix().table().rows] == [1.0, 0.5, -0.25, 0.5, 1.0, None, -0.25, None, 0.9]


def test_paths_table() -> None:
    table = paths().table()
    assert table.columns == ["path", "group", "label", "along 1", "along 2"]
    assert table.rows == [
        ["g/0", "g", "0", 0.0, 0.0],
        ["g/0", "g", "10", 1.0, 2.0],
        ["g/0", "g", "20", 0.5, -1.0],
    ]


def test_alternatives_say_what_is_seen() -> None:
    assert curves(log_y=True).alternative() == (
        "Lines of loss (log axis) against norm. Reference lines: trained at x = 1.5. "
        "general/0: first 3 at 0, last 1.5 at 2, minimum 1.5 at 2, maximum 3 at 0, 1 missing. "
        "random (control): first 3 at 0, last 3.25 at 2, minimum 3 at 0, maximum 3.25 at 2."
    )
    assert bars().alternative() == (
        "shift for 2 categories. a: medical 1, sports –. b: medical −2, sports 3."
    )
    assert matrix().alternative() == (
        "Grid of cosine: 3 rows by 3 columns. Highest off the diagonal: 0.5 (a, b). "
        "Lowest off the diagonal: −0.25 (a, c). On the diagonal: 0.9 to 1. 2 of 9 are missing."
    )
    assert paths().alternative() == (
        "Paths in the plane of along 1 (x) and along 2 (y). "
        "g/0: starts at (0, 0), 0; ends at (0.5, −1), 20; x 0 to 1; y −1 to 2."
    )


def test_many_categories_are_told_by_their_extremes() -> None:
    names = [f"c{at}" for at in range(9)]
    figure = Bars(*ABOUT, "shift", names, [BarSeries("a", [float((at - 4) ** 2) for at in range(9)])])
    assert figure.alternative().endswith(
        "a: first 16 for c0, last 16 for c8, minimum 0 for c4, maximum 16 for c0."
    )


def test_an_alternative_stays_short_and_says_what_it_leaves_out() -> None:
    series = [Series(f"a very long name of a run {at}" * 3, [0, 1], [0.0, 1.0]) for at in range(40)]
    text = curves(series=series, marks=[Mark("x", 0.5, "long " * 90)]).alternative()
    assert len(text) < 1200
    assert text.endswith(f"{40 - text.count('maximum')} more series are in the data table.")


def test_a_series_without_values_says_so() -> None:
    text = curves(series=[Series("none", [0, 1], [None, None])], marks=[]).alternative()
    assert text == "Lines of loss against norm. none: no values."


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: curves(series=[Series("a", [0, 1], [1.0])]), "figure t, series 'a': 1 values for 2 positions"),
    (lambda: curves(series=[Series("a", [float("nan")], [1.0])]), "series 'a': a position is nan"),
    (lambda: curves(series=[Series("a", [0], [float("nan")])]), "a value is nan; use None for a missing"),
    (lambda: curves(series=[Series("a", [0], [float("-inf")])]), "a value is -inf; use None"),
    (lambda: curves(series=[Series("a", [0], [1.0], [0.5])]), "an interval needs both low and high"),
    (lambda: curves(series=[Series("a", [0], [1.0], [0.5], [None])]), "an interval has one bound only"),
    (lambda: curves(series=[Series("a", [0], [1.0], [2.0], [0.5])]), "low 2 is above high 0.5"),
    (lambda: curves(series=[]), "figure t: no series to draw"),
    (lambda: curves(series=[Series("a", [0], [1.0])] * 2), "series 'a' occurs twice"),
    (lambda: curves(log_x=True), "series 'general/0': 0 has no place on a log axis"),
    (lambda: curves(log_y=True, marks=[Mark("y", 0, "zero")]), "mark 'zero': 0 has no place on a log axis"),
    (lambda: curves(marks=[Mark("x", float("inf"), "far")]), "mark 'far': a position is inf"),
    (lambda: bars(categories=["one"]), "series 'a': 2 values for 1 categories"),
    (lambda: bars(categories=["one", "one"]), "category 'one' occurs twice"),
    (lambda: bars(marks=[Mark("y", 1, "m")]), 'the value axis is horizontal; use axis="x"'),
    (lambda: matrix(values=[[1.0, 2.0, 3.0]]), "figure t: 1 values for 3 rows"),
    (lambda: matrix(low=[[0.0] * 3] * 3), "an interval needs both low and high"),
    (lambda: matrix(limits=(1.0, -1.0)), r"limits \(1.0, -1.0\) are not in order"),
    (lambda: paths(paths=[Path("p", [], [], [])]), "path 'p': it has no points"),
    (lambda: paths(paths=[Path("p", [0], [1], [])]), "path 'p': 0 values for 1 positions"),
    (lambda: Table("t", "T", ["a", "b"], [["x", 1], ["y"]]), "table t, row 2: 1 values for 2 columns"),
    (lambda: Table("t", "T", ["a"], [[float("inf")]]), "table t, row 1: a value is inf"),
    (lambda: Table("../t", "T", [], []), "an id may hold only a-z, 0-9, _ and -"),
    (lambda: Table("t\n", "T", [], []), "an id may hold only"),
    (lambda: Matrix("A", "", "", "", ["r"], ["c"], [[1.0]]), "figure 'A': an id may hold only"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_figure_that_cannot_be_drawn_is_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        make()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.0, "0"),
        (3, "3"),
        (-1234567, "−1234567"),
        (np.int64(12345), "12345"),
        (0.12345, "0.1235"),
        (np.float32(0.5), "0.5"),
        (-12.3456, "−12.35"),
        (12345.6, "12346"),
        (2e-5, "2e−5"),
        (1.2345e-5, "1.23e−5"),
        (1.5e7, "1.5e7"),
    ],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_names_lose_their_middle_but_stay_different() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("medical-general-seed-0", 11) == "medic…eed-0"
    same_ends = ["run-A-of-the-long-name", "run-B-of-the-long-name"]
    assert len(set(short_names(same_ends, 10))) == 2
    hidden = [f"{'a' * 30}{at}{'b' * 30}" for at in range(3)]
    assert short_names(hidden, 12) == ["aaaa…bbb (1)", "aaaa…bbb (2)", "aaaa…bbb (3)"]


def test_text_that_xml_forbids_is_replaced() -> None:
    assert plain("a\tb\n c\x00d\u202ee\ud800") == "a b c\ufffdd\ufffde\ufffd"
