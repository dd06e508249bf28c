"""Scatter plots: their data, their words, and where the marks stand."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.lines import Line2D

from em.errors import MeasurementError
from em.figures import _points, _theme
from em.figures._sheet import Sheet
from em.figures.draw import draw
from em.figures.model import Cloud, Mark, Panel, Points, Region

ABOUT = ("p", "Title", "What it is.", "")
SVG = "{http://www.w3.org/2000/svg}"


def points(**changes: Any) -> Points:
    options: dict[str, Any] = {
        "panels": [Panel("base", "0 of 1"), Panel("tuned")],
        "clouds": [
            Cloud("bad", "tuned", [10.0, 10.0, 20.0], [90.0, 90.0, 60.0], "negative"),
            Cloud("good", "base", [95.0], [100.0], "positive"),
        ],
        "marks": [Mark("x", 30, "bad below"), Mark("y", 50, "read above")],
        "region": Region("bad", (0, 30), (50, 100)),
        **changes,
    }
    return Points(*ABOUT, "aligned", "coherent", **options)


def many(count: int, panels: int) -> Points:
    draws = np.random.default_rng(0).uniform(0, 100, (panels, 2, count))
    clouds = [Cloud("a", f"panel {at}", x.tolist(), y.tolist()) for at, (x, y) in enumerate(draws)]
    return points(panels=[Panel(f"panel {at}") for at in range(panels)], clouds=clouds)


def sheet(figure: Points, palette: dict[str, int] | None = None) -> Sheet:
    made = _points.points(figure, _theme.LIGHT, palette or {}, None)
    made.settle()
    return made


def marks(made: Sheet) -> list[Line2D]:
    return [line for line in made.axes.lines if line.get_linestyle() == "None"]


def texts(figure: Points) -> list[str]:
    return [node.text or "" for node in ET.fromstring(draw(figure, {}).svg).iter(f"{SVG}text")]


def test_the_table_has_each_place_once_with_the_number_of_its_points() -> None:
    table = points().table()
    assert (table.id, table.title, table.definition) == ("p", "Title", "What it is.")
    assert table.columns == ["panel", "kind", "aligned", "coherent", "points"]
    assert table.rows == [
        ["tuned", "bad", 10.0, 90.0, 2],
        ["tuned", "bad", 20.0, 60.0, 1],
        ["base", "good", 95.0, 100.0, 1],
        [None, "bad below", 30, None, None],
        [None, "read above", None, 50, None],
    ]


def test_the_alternative_counts_each_kind_and_says_where_it_is() -> None:
    assert points().alternative() == (
        "Points in the plane of aligned (x) and coherent (y), 2 panels. Reference lines: bad below at x = "
        "30, read above at y = 50. base (0 of 1): good 1 around (95, 100). tuned: bad 3 around (10, 90)."
    )
    panels = [Panel(f"a very long name of a model {at}" * 3) for at in range(40)]
    text = points(panels=panels, clouds=[]).alternative()
    assert len(text) < 1200 and "no points" in text
    assert text.endswith(f"{40 - text.count('no points')} more panels are in the data table.")


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: points(clouds=[Cloud("a", "base", [1.0], [])]), "points 'a': 0 values for 1 positions"),
    (lambda: points(clouds=[Cloud("a", "gone", [1.0], [1.0])]), "panel 'gone', points 'a': there is no such"),
    (
        lambda: points(clouds=[Cloud("a", "base", [101.0], [1.0])]),
        "101 is outside 0 to 100; widen the limits",
    ),
    (lambda: points(clouds=[Cloud("a", "base", [float("nan")], [1.0])]), "a position is nan"),
    (lambda: points(clouds=[Cloud("a", "base", [1.0], [1.0])] * 2), "points 'a in base' occurs twice"),
    (
        lambda: points(clouds=[Cloud("a", "base", [], [], "muted"), Cloud("a", "tuned", [], [])]),
        "panel 'tuned', points 'a': another panel has them in another tone",
    ),
    (lambda: points(panels=[]), "figure p: no panel to draw"),
    (lambda: points(panels=[Panel("a"), Panel("a", "note")], clouds=[]), "panel 'a' occurs twice"),
    (lambda: points(marks=[Mark("x", -1, "m")]), "mark 'm': -1 is outside 0 to 100"),
    (lambda: points(region=Region("r", (0, 30), (50, 101))), "region: 101 is outside"),
    (lambda: points(limits=(100.0, 0.0)), r"limits \(100.0, 0.0\) are not in order"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_points_that_cannot_be_drawn_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        make()


def test_a_point_is_drawn_exactly_where_it_is() -> None:
    figure = points(
        panels=[Panel("only")],
        clouds=[Cloud("a", "only", [0.0, 100.0, 30.0], [0.0, 100.0, 50.0])],
        region=None,
    )
    made = sheet(figure)
    x, y = (np.asarray(values) for values in marks(made)[0].get_data())
    order = np.argsort(x)
    upright, level = (line for line in made.axes.lines if line.get_linestyle() == "--")
    assert x[order][1] == pytest.approx(upright.get_xdata()[0]) and y[order][1] == pytest.approx(
        level.get_ydata()[0]
    )
    # The limits are as far from the frame on both sides: 5% of the span of a panel 100 wide and 230 high.
    assert x[order][[0, 2]] == pytest.approx([100 * 5 / 110, 100 * 105 / 110])
    assert y[order][[0, 2]] == pytest.approx([230 * 5 / 110, 230 * 105 / 110])


def test_panels_stand_side_by_side_with_one_scale() -> None:
    figure = points(
        panels=[Panel(name) for name in "abc"],
        clouds=[Cloud("k", name, [40.0], [40.0]) for name in "abc"],
    )
    places = [tuple(float(values[0]) for values in line.get_data()) for line in marks(sheet(figure))]
    (ax, ay), (bx, by), (cx, cy) = places
    assert (bx - ax, by) == (pytest.approx(_points.SIDE + _points.APART), pytest.approx(ay))
    assert cx == pytest.approx(ax) and cy < ay
    written = texts(figure)
    assert [text for text in written if text in "abc"] == ["a", "b", "c"]
    assert written.count("30") == 2 and written.count("50") == 2  # under each column, beside each row
    assert {"aligned", "coherent", "k", "bad", "bad below (x = 30)", "read above (y = 50)"} <= set(written)


def test_more_points_at_one_place_make_one_larger_mark() -> None:
    clouds = [Cloud("a", "base", [10.0, *[50.0] * 2, *[90.0] * 40], [50.0] * 43)]
    drawn = marks(sheet(points(clouds=clouds)))
    assert [len(line.get_xdata()) for line in drawn] == [1, 1, 1]
    sizes = sorted(float(line.get_markersize()) for line in drawn)
    assert sizes == pytest.approx([3.8, 3.8 * 2 ** (1 / 3), 3.8 * 2 ** (5 / 3)])


def test_points_that_are_apart_are_not_merged() -> None:
    drawn = marks(sheet(points(clouds=[Cloud("a", "base", [50.0, 51.0, 50.0], [50.0, 50.0, 51.0])])))
    assert sum(len(line.get_xdata()) for line in drawn) == 3


def test_kinds_differ_in_shape_and_share_it_between_panels() -> None:
    clouds = [
        Cloud("a", "base", [1.0], [1.0], "muted"),
        Cloud("b", "base", [2.0], [2.0], "muted"),
        Cloud("a", "tuned", [3.0], [3.0], "muted"),
    ]
    assert sorted(str(line.get_marker()) for line in marks(sheet(points(clouds=clouds)))) == ["o", "o", "s"]


def test_colours_come_from_the_tone_or_from_the_palette() -> None:
    clouds = [Cloud("bad", "base", [1.0], [1.0], "negative"), Cloud("narrow", "base", [2.0], [2.0])]
    drawn = marks(sheet(points(clouds=clouds), {"general": 0, "narrow": 1}))
    assert {line.get_markerfacecolor()[0] for line in drawn} == {
        _theme.LIGHT["negative"],
        _theme.LIGHT["series-2"],
    }


def test_rare_kinds_are_drawn_over_common_ones() -> None:
    clouds = [
        Cloud("rare", "base", [50.0], [50.0], "negative"),
        Cloud("common", "base", [50.0, 60.0], [50.0, 60.0], "muted"),
    ]
    drawn = [line.get_markerfacecolor()[0] for line in marks(sheet(points(clouds=clouds)))]
    assert drawn[-1] == _theme.LIGHT["negative"]


def test_a_panel_without_points_says_so() -> None:
    assert texts(points(clouds=[])).count("no points") == 2
    assert "no points" not in texts(points())


def test_thresholds_that_are_close_are_not_written_over_each_other() -> None:
    figure = points(marks=[Mark("x", 50, "a"), Mark("x", 52, "b"), Mark("x", 95, "c"), Mark("y", 0, "d")])
    written = [text for text in texts(figure) if re.fullmatch(r"\d+", text)]
    assert written.count("50") == 2 and "52" not in written and written.count("95") == 2
    assert written.count("100") == 1  # of y only: 95 stands where that of x would


@pytest.mark.parametrize(("count", "panels"), [(2500, 1), (6000, 4)])
def test_thousands_of_points_stay_a_small_file(count: int, panels: int) -> None:
    figure = many(count, panels)
    svg = draw(figure, {}).svg
    assert len(svg.encode()) < 500_000
    assert 1000 < svg.count("<use") <= _points.MOST + 50
    assert sum(int(row[4]) for row in figure.table().rows if isinstance(row[4], int)) == count * panels
