"""What stands in the drawings: text as text, colours as variables, ids of their own, the same bytes."""

import io
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from em.figures import _curves, _labels, _matrix, _paths, _theme, _ticks
from em.figures.draw import draw
from em.figures.model import Bars, BarSeries, Curves, Figure, Mark, Matrix, Series
from tests.figures import examples

ROOT = Path(__file__).parents[2]
PALETTE = {"general": 0, "narrow": 1}
SVG = "{http://www.w3.org/2000/svg}"
FIGURES = examples.all_figures()
EACH = pytest.mark.parametrize("figure", FIGURES, ids=[figure.id for figure in FIGURES])


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter(f"{SVG}text")]


@EACH
def test_the_same_figure_gives_the_same_bytes(figure: Figure) -> None:
    assert draw(figure, PALETTE) == draw(figure, PALETTE)


@EACH
def test_the_drawing_carries_its_text_alternative_and_no_foreign_parts(figure: Figure) -> None:
    drawing = draw(figure, PALETTE)
    root = ET.fromstring(drawing.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"] == f"svg-{figure.id}--title svg-{figure.id}--desc"
    assert [child.tag for child in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
    assert root[1].text == figure.alternative()
    names = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert names <= {"svg", "title", "desc", "g", "defs", "path", "use", "text", "clipPath", "rect"}
    assert not re.search("#[0-9a-f]{6}", re.sub(">[^<]*<", "><", drawing.svg)), "a colour is not a variable"


@EACH
def test_ids_are_its_own_and_every_reference_has_one(figure: Figure) -> None:
    svg = draw(figure, PALETTE).svg
    nodes = list(ET.fromstring(svg).iter())
    ids = [node.attrib["id"] for node in nodes if "id" in node.attrib]
    assert len(ids) == len(set(ids))
    assert all(name.startswith(f"svg-{figure.id}--") for name in ids)
    links = {node.attrib["href"][1:] for node in nodes if "href" in node.attrib}
    clips = set(re.findall(r"url\(#([^)]+)\)", svg))
    assert links | clips == set(ids) - {f"svg-{figure.id}--{part}" for part in ("title", "desc")}


@EACH
def test_the_picture_is_as_wide_as_a_column_at_200_dots_per_inch(figure: Figure) -> None:
    with Image.open(io.BytesIO(draw(figure, PALETTE).png)) as picture:
        assert 900 < picture.width < 1120
        assert [round(dots) for dots in picture.info["dpi"]] == [200, 200]
        assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        assert "Software" not in picture.info


def test_the_file_defines_every_variable_it_uses_for_light_and_dark() -> None:
    text = draw(examples.matrix(), PALETTE).file
    root = ET.fromstring(text.encode())
    assert root.attrib["width"] == "374.4pt"
    for name in set(re.findall(r"var\(--([a-z0-9-]+)\)", text)) - {"font"}:
        light, dark = _theme.COLOURS[name]
        assert f"--{name}: {light};" in text
        assert f"--{name}: {dark};" in text.split("prefers-color-scheme: dark")[1]


def test_names_stay_text() -> None:
    svg = draw(examples.tricky(), {}).svg
    assert "<script" not in svg
    assert examples.SCRIPT in texts(svg)
    assert {"$x_1$", "y $\\frac{", "$a_b$ <x>", "another mark", "late"} <= set(texts(svg))
    assert "日本 😀 \ufffd[0m\ufffd" in texts(svg)
    assert "a run with a very long…dy can read it at all" in texts(svg)


def test_lines_are_labelled_at_their_ends_once_for_each_group() -> None:
    written = texts(draw(examples.curves(), PALETTE).svg)
    assert [text for text in written if text in ("general", "narrow", "random", "reference")] == [
        "general",
        "narrow",
        "random",
        "reference",
    ]
    assert not [text for text in written if "seed" in text]


def test_labels_that_do_not_fit_go_under_the_data_area() -> None:
    values = [("first", 1.0), ("second", 1.01), ("third", 1.02), ("fourth", 1.03), ("fifth", 1.04)]
    series = [Series(name, [0, 1], [0.0 if name == "first" else y, y]) for name, y in values]
    figure = Curves("c", "t", "", "", "x", "y", series, [Mark("y", 1.0, "level")])
    assert "level (y = 1)" in texts(draw(figure, {}).svg)
    assert "level" in texts(draw(Curves("c", "t", "", "", "x", "y", series[:2], figure.marks), {}).svg)


def test_a_gap_splits_the_line_and_a_lone_point_is_marked() -> None:
    series = [Series("a", [float(at) for at in range(40)], [1.0, None, *[2.0] * 38])]
    sheet = _curves.curves(Curves("c", "t", "", "", "x", "y", series), _theme.LIGHT, {}, None)
    line = sheet.axes.lines[0]
    assert np.isnan(line.get_ydata()).tolist() == [False, True, *[False] * 38]
    assert line.get_markevery() == [0]


def test_groups_share_colours_and_controls_are_grey() -> None:
    listed: list[tuple[str, str | None, _theme.Role]] = [
        ("n/0", "narrow", "solution"),
        ("new", None, "solution"),
        ("n/1", "narrow", "solution"),
        ("noise", "narrow", "control"),
        ("more noise", None, "control"),
        ("base", None, "reference"),
    ]
    found = _theme.groups(_theme.LIGHT, PALETTE, listed)
    assert [(group.label, group.members) for group in found] == [
        ("narrow", [0, 2]),
        ("new", [1]),
        ("noise", [3]),
        ("more noise", [4]),
        ("base", [5]),
    ]
    colours = [group.look.colour for group in found]
    names = ["series-2", "series-3", "muted", "muted", "muted"]
    assert colours == [_theme.LIGHT[name] for name in names]
    assert [group.look.dashes for group in found] == [None, None, (4, 2), (6, 2, 1, 2), (1, 1.6)]
    assert found[0].look.width < found[1].look.width
    beyond = _theme.groups(_theme.LIGHT, {"ninth": 8}, [("ninth", None, "solution")])[0].look
    assert (beyond.colour, beyond.dashes) == (_theme.LIGHT["series-1"], (7, 1.6, 1.6, 1.6))


def test_cells_of_a_matrix_are_as_strong_as_their_values() -> None:
    figure = Matrix("m", "t", "", "", ["r"], ["a", "b", "c", "d"], [[2.0, -0.5, None, 0.0]], limits=(-1, 1))
    sheet = _matrix.matrix(figure, _theme.LIGHT, {}, None)
    alphas = [round(float(cell.get_facecolor()[3]), 2) for cell in sheet.axes.patches[:4]]
    assert alphas == [0.6, 0.3, 0.0, 0.0]
    assert [text.get_text() for text in sheet.axes.texts[:4]] == ["2.00", "−0.50", "–", "0.00"]


def test_bars_show_zero_and_their_marks() -> None:
    figure = Bars("b", "t", "", "", "v", ["c"], [BarSeries("a", [5.0], [4.0], [6.0])], [Mark("x", 9, "far")])
    svg = draw(figure, {}).svg
    assert {"0", "c", "v", "a", "far"} <= set(texts(svg))
    sheet_limits = [float(text.replace("−", "-")) for text in texts(svg) if re.fullmatch("[0-9.−]+", text)]
    assert min(sheet_limits) == 0 and max(sheet_limits) >= 8


def test_labels_of_paths_stand_apart_from_each_other_and_inside() -> None:
    sheet = _paths.paths(examples.paths(), _theme.LIGHT, PALETTE, None)
    sheet.settle()
    renderer = sheet.canvas.get_renderer()
    labels = [text for text in sheet.axes.texts if isinstance(text, Text)]
    assert {"200", "0"} <= {text.get_text() for text in labels}
    boxes = [text.get_window_extent(renderer) for text in labels]
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_a_mark_beyond_the_data_is_shown_and_takes_no_width_from_it() -> None:
    marks = [Mark("x", 9, "a label that is wider than what is left beside it"), Mark("x", 0, "zero")]
    figure = Curves("c", "t", "", "", "x", "y", [Series("a", [0, 1], [1, 2])], marks)
    sheet = _curves.curves(figure, _theme.LIGHT, {}, None)
    sheet.settle()
    low, high = sheet.axes.get_xlim()
    assert low < 0 and high > 9
    assert sheet.inner_width() > 300


def test_nothing_at_all_is_drawn_as_no_values() -> None:
    figure = Curves("c", "t", "", "", "x", "y", [Series("a", [1, 2], [None, None])], log_y=True)
    assert "no values" in texts(draw(figure, {}).svg)
    empty = Bars("b", "t", "", "", "v", ["c"], [BarSeries("a", [None])])
    assert "c" in texts(draw(empty, {}).svg)
    assert "–" in texts(draw(Matrix("m", "t", "", "", ["r"], ["c"], [[None]]), {}).svg)


def test_labels_move_as_little_as_they_must() -> None:
    assert _labels.spread([50, 10], 10, 0, 100) == [50, 10]
    assert _labels.spread([50, 52], 10, 0, 100) == [46, 56]
    assert _labels.spread([99, 98], 10, 0, 100) == [100, 90]
    assert _labels.spread([50, 50, 50, 50, 50, 50], 10, 0, 100) is None
    assert _labels.spread([5, 5], 10, 0, 8) is None


def test_log_ticks_are_round_and_few() -> None:
    assert _ticks.log_ticks(0.9, 110) == [1, 3, 10, 30, 100]
    assert _ticks.log_ticks(1, 10) == [1, 2, 5, 10]
    assert _ticks.log_ticks(0.3, 4) == [0.5, 1, 2]
    assert _ticks.log_ticks(3.1, 3.2) == [3.1, 3.2]
    assert len(_ticks.log_ticks(1e-12, 1e12)) <= 6
    assert _ticks.Plain().format_ticks([-0.5, 0.0, 0.5]) == ["−0.5", "0.0", "0.5"]
    assert _ticks.Plain().format_ticks([0, 2500, 5000]) == ["0", "2500", "5000"]
    assert _ticks.Plain().format_ticks([0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert _ticks.Plain().format_ticks([0, 2e-5, 4e-5]) == ["0", "2e−5", "4e−5"]


def test_global_state_stays_as_it_was() -> None:
    with matplotlib.rc_context({"text.parse_math": True, "font.size": 31, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        one = draw(examples.curves(), PALETTE)
        assert dict(matplotlib.rcParams) == before
    assert one == draw(examples.curves(), PALETTE)
    code = "import sys, em.figures.draw; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    code = "import sys, em.figures.model; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


Colour = NDArray[np.float64]
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SEEN_WITH = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


def linear(colour: str) -> Colour:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: Colour, other: Colour) -> float:
    lights = sorted(float(colour @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (one, other))
    return lights[1] / lights[0]


def lab(rgb: Colour) -> Colour:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def mixed(colour: str, surface: str, share: float) -> Colour:
    top, below = ([int(c[at : at + 2], 16) for at in (1, 3, 5)] for c in (colour, surface))
    parts = [round(share * a + (1 - share) * b) for a, b in zip(top, below, strict=True)]
    return linear("#" + "".join(f"{part:02x}" for part in parts))


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast_and_stay_apart_for_the_colour_blind(mode: int) -> None:
    colours = {name: pair[mode] for name, pair in _theme.COLOURS.items()}
    surface = linear(colours["surface"])
    for name in ("ink", "muted"):
        assert contrast(linear(colours[name]), surface) >= 4.5
    for name in ("positive", "negative"):
        assert contrast(linear(colours[name]), surface) >= 3
        cell = mixed(colours[name], colours["surface"], _theme.STRONGEST)
        assert contrast(linear(colours["ink"]), cell) >= 4.5
    series = [linear(colours[f"series-{at + 1}"]) for at in range(_theme.SLOTS)]
    assert min(contrast(colour, surface) for colour in series) >= 3
    for matrix in ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], *SEEN_WITH.values()):
        seen = [lab(np.array(matrix) @ colour) for colour in series]
        assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 15
