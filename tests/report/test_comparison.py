"""The page of a comparison from tables: what it shows, what it says, and what it leaves out."""

import csv
import html
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from em.errors import RunError
from em.figures.sections import DRAWN, figures
from em.report import comparison, page
from em.report.comparison import erase_report, write_report
from em.report.summary import headline, sentences
from tests.report import hand_made as made

BOTH = ["general", "narrow"]
MANY = [f"arm number {at}" for at in range(12)]
ODD = [
    "<script>alert(1)</script>",
    "cost $x_1$ & more",
    "a-name-without-any-place-to-break-it-" * 8,
    "[b]it[/b] %s {}",
]
KINDS = ["more efficient", "more stable", "more significant", "narrower"]
Tables = dict[str, Any]


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as empty pictures, because most tests are not about drawing."""
    drawing = page.Drawing('<svg viewBox="0 0 1 1"></svg>', b"png")
    if "really" not in request.node.name:
        monkeypatch.setattr(page, "draw", lambda figure, palette: drawing)


def write(folder: Path, tables: Tables) -> str:
    """The page of tables, with its character references resolved."""
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (folder / "tables" / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    assert write_report(folder) == folder / "report.html"
    return (folder / "report.html").read_text(encoding="utf-8")


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def drawn(text: str) -> list[str]:
    return re.findall(r'<figure[^>]* id="figure-([a-z0-9-]+)"', text)


@pytest.mark.parametrize("names", [["alone"], BOTH, MANY, ODD], ids=["one", "two", "twelve", "odd"])
def test_every_section_can_be_shown(tmp_path: Path, names: list[str]) -> None:
    tables = made.everything(names)
    text = write(tmp_path, tables)
    expected = [
        "efficiency",
        "stability",
        "significance",
        "margins",
        "narrowness",
        "difference-cosines",
        "cosines",
    ]
    expected += ["steering", "ablation", "rotation", "trajectory-norms", "trajectory-loss", "trajectory"]
    assert set(drawn(text)) == {*expected, *(["shift-cosines"] if len(names) > 1 else [])}
    assert "<script" not in text and all(
        html.escape(name).replace("&#x27;", "&#39;") in text for name in names
    )
    solutions = {name: one for name in DRAWN if name in tables for one in [tables[name]]}
    assert all(figure.alternative() for name, one in solutions.items() for figure in figures(name, one, {}))


def test_odd_names_are_really_drawn_as_text(tmp_path: Path) -> None:
    tables = made.everything(ODD)
    kept = ("solutions", "stability", "margins", "ablation", "trajectory")
    text = write(tmp_path, {name: tables[name] for name in kept})
    assert "<script" not in text and "cost $x_1$ &amp; more" in text and "[b]it[/b] %s {}" in text
    for path in (tmp_path / "figures").glob("*.svg"):
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("section", [name for name in made.everything(BOTH) if name != "solutions"])
def test_any_section_may_be_missing_or_alone(tmp_path: Path, section: str) -> None:
    tables = made.everything(BOTH)
    alone = drawn(write(tmp_path / "alone", {"solutions": tables["solutions"], section: tables.pop(section)}))
    rest = drawn(write(tmp_path / "rest", tables))
    assert alone and rest and set(alone).isdisjoint(rest)


def test_no_section_at_all(tmp_path: Path) -> None:
    text = write(tmp_path, {"solutions": made.solutions(BOTH, ["Nothing was measured."])})
    assert drawn(text) == [] and "Nothing was measured." in text and "<h1>general against narrow</h1>" in text


def test_titles(tmp_path: Path) -> None:
    for count, title in ((1, "a"), (3, "a against b against c"), (4, "4 solutions compared")):
        text = write(tmp_path, {"solutions": made.solutions(list("abcd"[:count]))})
        assert f"<h1>{title}</h1>" in text


def test_what_is_missing_says_why(tmp_path: Path) -> None:
    reason = "the solution's loss 2.1 is not below the reference's 2.0"
    tables = {"solutions": made.solutions(BOTH), "stability": made.stability(["general"], {"narrow": reason})}
    tables["trajectory"] = made.trajectory([], {"narrow": "0 snapshots; train with callbacks.trajectory"})
    text = html.unescape(write(tmp_path, tables))
    assert f"narrow: {reason}" in text and "narrow: 0 snapshots; train with callbacks.trajectory" in text
    assert drawn(text) == ["stability"]
    (tmp_path / "none").mkdir()
    tables["stability"] = made.stability([], dict.fromkeys(BOTH, reason))
    text = html.unescape(write(tmp_path / "none", tables))
    assert f"general: {reason}" in text and drawn(text) == []


def test_paired_differences_are_listed_in_full(tmp_path: Path) -> None:
    tables = made.everything(["a", "b", "c"])
    tables["efficiency"]["differences"][0] |= {"by_seed": [-0.5, None], "seeds": 2}
    write(tmp_path, tables)
    found = rows(tmp_path, "inductive-bias-differences")
    assert [row["quantity"] for row in found[::3]] == [
        "loss at equal norm, nats per token",
        "gain lost over ε, %",
        "noise half-life, ε",
        "KL slope on prose, nats per token and norm",
    ]
    first = found[0]
    assert [first[key] for key in ("a", "b", "a − b", "seeds", "by seed")] == [
        "a",
        "b",
        "-0.5",
        "2",
        "−0.5, –",
    ]
    half = [row for row in found if row["quantity"].startswith("noise half-life")]
    assert [row["a − b"] for row in half] == ["", "", ""]
    assert [row["quantity"] for row in rows(tmp_path, "margins-differences")][::3] == [
        "shift in soup",
        "shift in tent",
        "shift in bare",
        "narrowness",
    ]
    assert rows(tmp_path, "updates")[0] == {"a": "a", "b": "b", "effective update": "0.3", "B matrices": ""}


def test_the_headline_holds_every_solution() -> None:
    few, many = headline(made.everything(BOTH)), headline(made.everything(MANY))
    labels = ["seed", "norm", "loss", "loss at equal norm", "noise area, %", "noise half-life"]
    labels += ["KL slope ×1000, prose", "margin shift", "narrowness"]
    assert few.columns == ["", *BOTH] and [row[0] for row in few.rows] == labels
    assert many.columns == ["solution", *labels] and [row[0] for row in many.rows] == MANY
    by_label = {row[0]: row[1:] for row in few.rows}
    assert by_label["loss"] == ["1.5 [1.4, 1.6]"] * 2 and by_label["noise half-life"] == [None, None]
    assert by_label["KL slope ×1000, prose"] == ["2 [1, 3]"] * 2
    assert by_label["seed"] == ["0", "0"] and by_label["norm"] == ["1.5", "1.5"]


def test_the_headline_of_a_solution_without_a_measurement() -> None:
    tables = made.everything(BOTH)
    tables["stability"] = made.stability(["general"], {"narrow": "no gain"})
    tables["efficiency"]["solutions"]["narrow"]["own"] |= {"low": None, "high": None}
    by_label = {row[0]: row[1:] for row in headline(tables).rows}
    assert by_label["noise area, %"] == ["30 [29.9, 30.1]", None]


def four(values: list[float | None], half: float = 0.1, seeds: int = 1) -> Tables:
    """Two arms that differ in the four kinds by these values."""
    tables = made.everything(BOTH)
    one = [[made.difference(BOTH[0], BOTH[1], value, half, seeds)] for value in values]
    tables["efficiency"]["differences"], tables["stability"]["differences"]["area"] = one[0], one[1]
    tables["significance"]["slices"]["prose"]["differences"], tables["margins"]["differences"] = (
        one[2],
        one[3],
    )
    return tables


@pytest.mark.parametrize("kind", range(4), ids=KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_winner_is_named(kind: int, sign: int) -> None:
    found = sentences(four([0.5 * sign] * 4))
    lower = BOTH[0] if sign < 0 else BOTH[1]
    higher = BOTH[1] if sign < 0 else BOTH[0]
    winner = higher if KINDS[kind] == "more significant" else lower
    assert len(found) == 4 and found[kind].startswith(f"{winner} is {KINDS[kind]}: ")


@pytest.mark.parametrize("kind", range(4), ids=KINDS)
@pytest.mark.parametrize("value", [-0.5, 0.0, 0.5])
def test_an_interval_with_0_in_it_names_nobody(kind: int, value: float) -> None:
    sentence = sentences(four([value] * 4, half=0.5))[kind]
    assert sentence.startswith(f"Neither of general and narrow is clearly {KINDS[kind]}: ")


def test_an_interval_on_the_other_side_of_its_value_names_nobody() -> None:
    tables = four([0.5] * 4)
    tables["efficiency"]["differences"][0] |= {"value": -0.1}
    assert sentences(tables)[0].startswith("Neither of general and narrow is clearly more efficient")


def test_sentences_hold_the_numbers() -> None:
    assert sentences(four([-0.5, 2.0, 0.0015, 0.25], half=0.001, seeds=3)) == [
        "general is more efficient: loss at equal norm: general − narrow = −0.5 [−0.501, −0.499] nats per "
        "token over 3 seeds.",
        "narrow is more stable: gain lost to noise, on average: general − narrow = 2 [2, 2] % over 3 seeds.",
        "general is more significant: KL on prose per 1000 units of norm: general − narrow = 1.5 [0.5, 2.5] "
        "nats per token over 3 seeds.",
        "narrow is narrower: narrowness: general − narrow = 0.25 [0.249, 0.251] over 3 seeds.",
    ]


def test_what_has_no_interval_is_not_compared() -> None:
    for sentence in sentences(four([None] * 4)):
        assert sentence.endswith(": general and narrow cannot be compared (no interval).")


def test_further_slices_do_not_crowd_out_other_kinds() -> None:
    tables = four([-0.5] * 4)
    tables["significance"] = made.significance(BOTH, ("prose", "code", "web"))
    found = sentences(tables)
    assert [kind in sentence for kind, sentence in zip(KINDS, found, strict=True)] == [True] * 4


def test_one_solution_and_many() -> None:
    assert sentences(made.everything(["alone"])) == [
        "One solution: nothing to compare with; the figures show it against the reference."
    ]
    tables = made.everything(BOTH)
    for row in tables["solutions"]["solutions"]:
        row["arm"] = "arm"
    assert sentences(tables)[0].startswith("2 seeds of one solution: nothing to compare with")
    found = sentences(made.everything(MANY))
    assert found[0] == "12 solutions on one grid; see the table." and len(found) == 4


def test_erasing_takes_what_the_page_links_to(tmp_path: Path) -> None:
    write(tmp_path, made.everything(BOTH))
    (tmp_path / "figures" / "mine.png").write_bytes(b"")
    erase_report(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"figures/mine.png", *(f"tables/{name}.json" for name in made.everything(BOTH))}
    erase_report(tmp_path)


def test_what_is_needed_covers_every_section(tmp_path: Path) -> None:
    listed = {name for *_, names in comparison.SECTIONS for name in names}
    assert set(comparison.NEEDED) == listed | {"solutions", "behaviour", "behaviour_answers"}
    with pytest.raises(RunError, match="no tables/solutions.json"):
        write_report(tmp_path)
