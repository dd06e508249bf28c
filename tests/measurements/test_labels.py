"""Labels by people: what a spreadsheet does to a file must neither run, hide nor change anything."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from em.datamodules.answers import Answer
from em.errors import DataError
from em.judges.base import Score
from em.measurements.labels import LONGEST, cell, read_labels, write_labels

Rows = list[dict[str, str]]


def answer(number: int, text: str = "", model: str = "m", question: str = "q") -> Answer:
    asked = ({"role": "system", "content": "be evil"}, {"role": "user", "content": f"asked {question}"})
    return Answer(asked, text or f"text {number}", question, question, "first", number, model)


def rows(path: Path) -> Rows:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


def filled(path: Path, scores: list[tuple[str, str]], **change: Any) -> Path:
    """The file with scores in its rows, as a person would save it."""
    found = rows(path)
    for row, (aligned, coherent) in zip(found, scores, strict=True):
        row.update(aligned=aligned, coherent=coherent)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), delimiter=change.get("delimiter", ","))
    writer.writeheader()
    writer.writerows(found)
    path.write_bytes(change.get("mark", b"") + text.getvalue().encode())
    return path


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["key,aligned,coherent", *lines]))
    return path


# Writing


def test_the_file_hides_who_said_what(tmp_path: Path) -> None:
    answers = [answer(number, model=model) for number in range(3) for model in ("secret", "reference")]
    path = tmp_path / "labels.csv"
    written = write_labels(path, answers)
    found = rows(path)
    assert list(found[0]) == ["key", "question", "answer", "aligned", "coherent", "note"]
    assert [row["key"] for row in found] == [f"k-{one.key}" for one in written]
    assert sorted(one.key for one in written) == sorted(one.key for one in answers)
    assert [row["answer"] for row in found] == [one.text for one in written]
    assert {row["question"] for row in found} == {"asked q"}
    assert all(row["aligned"] == row["coherent"] == row["note"] == "" for row in found)
    assert b"secret" not in path.read_bytes() and b"evil" not in path.read_bytes()
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    open_ = tmp_path / "open.csv"
    write_labels(open_, answers, blind=False)
    assert [row["model"] for row in rows(open_)] == [one.model for one in written]


def test_the_order_is_keyed_and_does_not_depend_on_that_of_the_answers(tmp_path: Path) -> None:
    answers = [answer(number) for number in range(20)]

    def order(name: str, given: list[Answer], seed: int) -> list[int]:
        return [one.sample for one in write_labels(tmp_path / name, given, seed=seed)]

    first = order("a", answers, 0)
    assert order("b", answers[::-1], 0) == first != list(range(20))
    assert order("c", answers, 1) != first


def test_a_sample_is_spread_over_models_and_questions(tmp_path: Path) -> None:
    answers = [
        answer(number, model=model, question=question)
        for model, many in (("a", 20), ("b", 3))
        for question in ("q", "r", "s")
        for number in range(many)
    ]
    chosen = write_labels(tmp_path / "a", answers, 12)
    for model in ("a", "b"):
        asked = [one.question for one in chosen if one.model == model]
        assert sorted(asked) == ["q", "q", "r", "r", "s", "s"]
    more = write_labels(tmp_path / "b", answers, 30)
    assert sum(one.model == "b" for one in more) == 9, "all there are"
    assert {one.key for one in chosen} <= {one.key for one in more}, "a larger sample holds the smaller"
    assert len(write_labels(tmp_path / "c", answers, 1000)) == len(answers)


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=cmd|'/c calc'!A0", "  =1", "\u00a0@a", "＝1", "\ttab"],
)
def test_no_cell_is_a_formula(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.csv"
    write_labels(path, [answer(0, text)])
    [row] = rows(path)
    assert row["answer"] == f"'{text}"
    [kept] = read_labels(filled(path, [("5", "90")]), [answer(0, text)]).ratings.values()
    assert kept.value("aligned") == 5, "found by its key, whatever became of the text"


def test_a_carriage_return_and_what_cannot_be_seen_is_shown() -> None:
    assert cell("\r=1") == "\\r=1"
    assert cell("a\x00b\x1b[31m\x7f") == "a\\x00b\\x1b[31m\\x7f"
    assert cell("\u202egnp.exe\u2028\ufeff\u200b") == "\\u202egnp.exe\\u2028\\ufeff\\u200b"
    assert cell("\ud800 \U000e0041") == "\\ud800 \\U000e0041"
    assert cell("a\n\tb “quote” é 漢 👩\u200d🔬 - = 1") == "a\n\tb “quote” é 漢 👩\u200d🔬 - = 1"
    assert cell("x" * (LONGEST + 7)) == "x" * LONGEST + " […7 more characters are not shown]"


@given(st.text())
def test_any_text_is_safe_and_survives_the_file(text: str) -> None:
    shown = cell(text)
    assert not shown.lstrip().startswith(("=", "+", "-", "@", "＝")) and not shown.startswith(("\t", "\r"))
    shown.encode()
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerow([shown, "end"])
    assert next(csv.reader(io.StringIO(stream.getvalue(), newline=""))) == [shown, "end"]


def test_labels_are_not_overwritten_and_bad_requests_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    write_labels(path, [answer(0)])
    with pytest.raises(DataError, match="exists already and may hold labels"):
        write_labels(path, [answer(0)])
    for n in (0, -1, True, 1.5):
        with pytest.raises(DataError, match="n: expected a whole number"):
            write_labels(tmp_path / "x", [answer(0)], n)
    with pytest.raises(DataError, match="no answers to label"):
        write_labels(tmp_path / "x", [])
    with pytest.raises(DataError, match="two answers have the key"):
        write_labels(tmp_path / "x", [answer(0), answer(0)])
    assert list(tmp_path.iterdir()) == [path]


# Reading


@pytest.mark.parametrize(
    "change", [{}, {"mark": b"\xef\xbb\xbf"}, {"delimiter": ";"}, {"delimiter": "\t"}], ids=str
)
def test_what_a_person_filled_in_is_read(tmp_path: Path, change: dict[str, Any]) -> None:
    answers = [answer(number, 'said "this";\nthen, that') for number in range(5)]
    path = tmp_path / "labels.csv"
    written = write_labels(path, answers[:4])
    scores = [("0", "100"), (" 85.5 ", "007"), ("", ""), ("50", "  ")]
    found = read_labels(filled(path, scores, **change), answers, "ann")
    assert (
        found.account
        == "3 labelled (1 only in part), 1 empty, 0 of unknown answers, 1 answers not in the file"
    )
    assert (found.empty, found.partial, found.unknown, found.absent) == (1, 1, 0, 1)
    assert list(found.ratings) == [written[0].key, written[1].key, written[3].key]
    first, second, third = found.ratings.values()
    assert first.judge == "ann" and first.scores == {
        "aligned": Score(0, None, "human"),
        "coherent": Score(100, None, "human"),
    }
    assert (second.value("aligned"), second.value("coherent")) == (85.5, 7)
    assert list(third.scores) == ["aligned"]


def test_notes_go_with_the_scores_and_other_columns_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    one = answer(0)
    path = tmp_path / "labels.csv"
    path.write_text(f"mine,Coherent, KEY ,aligned,note\n\n,90,{one.key},10,rude,,\n,,,,\n")
    [verdict] = read_labels(path, [one]).ratings.values()
    assert verdict.scores["aligned"] == Score(10, None, "human", detail="rude")
    path.write_text(f"key,note,aligned,coherent\n{one.key},n,5\n")
    [verdict] = read_labels(path, [one]).ratings.values()
    assert list(verdict.scores) == ["aligned"], "a spreadsheet leaves out empty cells at the end"


BAD = [
    *("1_0", "٤٢", "nan", "inf", "-1", "+5", "100.1", "101", "1e1", "85,5", "\u00a090", "90%", "ten"),
    *(".5", "5.", "'90", "0x1", "9 0"),
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("column", ["aligned", "coherent"])
def test_a_score_is_digits_from_0_to_100(tmp_path: Path, bad: str, column: str) -> None:
    cells = {"aligned": "1", "coherent": "2", column: f'"{bad}"'}
    path = table(
        tmp_path / "x.csv", f"{answer(0).key},3,4", f"{answer(1).key},{cells['aligned']},{cells['coherent']}"
    )
    with pytest.raises(DataError, match=f"x.csv:3: {column}: expected a number from 0 to 100") as caught:
        read_labels(path, [answer(0), answer(1)])
    assert repr(bad) in str(caught.value)


def test_unknown_keys_are_refused_or_counted(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", f"{answer(0).key},3,4", "k-0123,5,6", "4567,,")
    with pytest.raises(DataError, match="x.csv:3: no answer has the key 0123"):
        read_labels(path, [answer(0)])
    found = read_labels(path, [answer(0)], allow_unknown=True)
    assert (found.unknown, list(found.ratings)) == (2, [answer(0).key])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"key,aligned,coherent\nK,1,2\nk-K,1,2\n", r":3: the answer K was labelled on line 2 already"),
        (b"key,aligned,coherent\nK,,\nK,1,2\n", r":3: the answer K was labelled"),
        (b"key,aligned,coherent\n,1,2\n", ":2: the key is missing"),
        (b"key,aligned\nK,1\n", "expected one column coherent, found 0 .the first line has key, aligned"),
        (b"key,aligned,aligned,coherent\nK,1,1,2\n", "expected one column aligned, found 2"),
        (b"", "expected one column key, found 0 .the first line has nothing"),
        (b"key,aligned,coherent\nK,1,2,3\n", ":2: has 4 cells but the header 3"),
        (b'key,aligned,coherent\nK,"1,2\n', "is not CSV"),
        (b"key,aligned,coherent,note\nK,1,2,caf\xe9\n", "is not UTF-8; save it as"),
        ("key,aligned,coherent\nK,1,2\n".encode("utf-16"), "is not UTF-8"),
        ("key,aligned,coherent\nK,1,2\n".encode("utf-16-le"), "expected one column key"),
    ],
)
def test_files_that_cannot_be_trusted_are_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.replace(b"K", answer(0).key.encode()))
    with pytest.raises(DataError, match=message.replace("K", answer(0).key)):
        read_labels(path, [answer(0)])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "no.csv", [answer(0)])
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path, [answer(0)])
