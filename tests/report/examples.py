"""A page with every part, every kind of figure, and names that must stay text."""

from em.figures.model import Table
from em.report.page import Page, Section
from tests.figures import examples

MARKUP = "<script>alert('x')</script> & $x_1$ <b>"
GROUPS = ["general", "narrow"]


def page() -> Page:
    key = Table(
        "key",
        "Key numbers",
        ["solution", "loss", "shift of the margin in the training domain", "steps"],
        [[MARKUP, 1.37214, None, 200], ["narrow, a_run_name_without_any_place_to_break_it", -2e-5, 4.0, 200]],
        "Mean over three seeds <i>.",
    )
    wide = Table(
        "wide", "Wide", [f"column number {at}" for at in range(14)], [[0.5 + at for at in range(14)]]
    )
    sections = [
        Section(
            "one", f"First {MARKUP}", "A paragraph.\nIts second line.\n\nAnother & one.", [examples.curves()]
        ),
        Section("two", "Second", "", [examples.bars(), examples.matrix()], [wide], ["A note <u>."]),
        Section("three", "Third", "Text.", [examples.paths(), examples.tricky()]),
    ]
    return Page(
        f"Title {MARKUP}",
        ["The first sentence.", f"The second {MARKUP}."],
        [("Base model", MARKUP), ("Runs", "runs/" + "very-long-" * 12)],
        key,
        sections,
        [f"A warning {MARKUP}"],
    )
