"""Draw a figure: an SVG that follows its page's colours, and a picture for slides and papers."""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG

from em.figures import _svg
from em.figures._bars import bars
from em.figures._curves import curves
from em.figures._matrix import matrix
from em.figures._paths import paths
from em.figures._points import points
from em.figures._sheet import DPI, Sheet
from em.figures._theme import LIGHT, RC, STAND_INS, Theme
from em.figures.model import Bars, Curves, Figure, Matrix, Paths

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Drawing:
    """A drawn figure; the same figure and palette give the same bytes.

    Args:
        svg: to be put into a page that defines the variables of `em.figures.draw.page_css`.
        png: light, 200 dots per inch, with the title.
    """

    svg: str
    png: bytes

    @property
    def file(self) -> str:
        """The SVG as a file of its own, light or dark as its reader prefers."""
        return _svg.stand_alone(self.svg)


def draw(figure: Figure, palette: dict[str, int]) -> Drawing:
    """Draw a figure without touching matplotlib's global state.

    Args:
        palette: colour of each group, 0 to 7; beyond that colours repeat with another dash. A group that is
            missing gets the next one.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the picture's font lacks: the SVG keeps it as text, the picture shows a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        matplotlib.rcdefaults()
        settings: dict[Any, Any] = matplotlib.rcParams
        for name, value in {**RC, "svg.hashsalt": figure.id}.items():
            settings[name] = value
        page = io.StringIO()
        sheet = _sheet(figure, STAND_INS, palette, None)
        FigureCanvasSVG(sheet.figure).print_svg(page, metadata=NO_METADATA)
        picture = io.BytesIO()
        sheet = _sheet(figure, LIGHT, palette, figure.title)
        sheet.figure.patch.set(visible=True, facecolor=LIGHT["surface"])
        sheet.figure.savefig(
            picture,
            format="png",
            dpi=DPI,
            bbox_inches="tight",
            pad_inches=0.12,
            metadata={"Software": None},
        )
    svg = _svg.for_page(page.getvalue(), f"svg-{figure.id}", figure.title, figure.alternative())
    return Drawing(svg, picture.getvalue())


def page_css() -> str:
    """Definitions of the variables that inline drawings use."""
    return _svg.css()


def _sheet(figure: Figure, theme: Theme, palette: dict[str, int], title: str | None) -> Sheet:
    if isinstance(figure, Curves):
        sheet = curves(figure, theme, palette, title)
    elif isinstance(figure, Bars):
        sheet = bars(figure, theme, palette, title)
    elif isinstance(figure, Matrix):
        sheet = matrix(figure, theme, palette, title)
    elif isinstance(figure, Paths):
        sheet = paths(figure, theme, palette, title)
    else:
        sheet = points(figure, theme, palette, title)
    sheet.settle()
    return sheet
