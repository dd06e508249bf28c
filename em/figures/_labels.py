"""Places for labels beside lines and above marks that keep them apart."""

from collections.abc import Sequence

from em.figures._sheet import LINE, SIZE, Sheet
from em.figures.model import Mark
from em.figures.words import shorten

FARTHEST = 1.4 * LINE  # a label further from its line than this would be read as another line's
Box = tuple[float, float, float, float]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float] | None:
    """The places nearest to the wanted ones (least squares) that are `gap` apart within [low, high].

    Returns: None where a label would have to move too far, or does not fit at all.
    """
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    blocks: list[list[float]] = []  # sums and sizes of labels that touch, as in isotonic regression
    for rank, at in enumerate(order):
        blocks.append([wanted[at] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, size = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += size
    top = high - (len(wanted) - 1) * gap
    if top < low:
        return None
    starts = [min(max(total / size, low), top) for total, size in blocks for _ in range(int(size))]
    places = [0.0] * len(wanted)
    for rank, at in enumerate(order):
        places[at] = starts[rank] + rank * gap
    moved = max((abs(a - b) for a, b in zip(places, wanted, strict=True)), default=0.0)
    return places if moved <= FARTHEST else None


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes (left, bottom, right, top) share area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def vertical_marks(sheet: Sheet, marks: Sequence[Mark]) -> None:
    """Lines at values of x, with their labels above the data area in as many rows as they need."""
    axes = sheet.axes
    for mark in marks:
        axes.axvline(mark.value, color=sheet.theme["muted"], linewidth=0.9, dashes=(3, 2), zorder=1.2)
    if marks:
        sheet.arrange()
    width = sheet.inner_width()
    to_area = axes.transData + axes.transAxes.inverted()
    taken: list[Box] = []
    for mark in marks:
        text = shorten(mark.label, 36)
        while sheet.width(text) > width and len(text) > 8:
            text = shorten(text, len(text) - 2)
        long = sheet.width(text)
        place = float(to_area.transform((mark.value, 1))[0]) * width
        # A label that reached beyond the data area would take width from it.
        left = min(max(place - long / 2, 0.0), max(width - long, 0.0))
        row = 0.0
        while any(overlap((left, row, left + long + 8, row + 1), box) for box in taken):
            row += 1
        taken.append((left, row, left + long + 8, row + 1))
        axes.annotate(
            text,
            (mark.value, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(left - place, 4 + row * LINE),
            textcoords="offset points",
            ha="left",
            va="baseline",
            size=SIZE,
            color=sheet.theme["muted"],
            annotation_clip=False,
        )
