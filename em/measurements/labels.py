"""Human labels: a CSV file that people fill in with a spreadsheet, and what they said."""

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from em.datamodules.answers import Answer
from em.errors import DataError
from em.files import write_text
from em.hooks import keyed_seed
from em.judges.base import Metric, Score, Verdict

COLUMNS = ("key", "question", "answer", "aligned", "coherent", "note")
SCORED: tuple[Metric, Metric] = ("aligned", "coherent")
METHOD = "human"
# In front of a key, because a spreadsheet reads some bare ones as numbers (12e4…) and saves others.
MARK = "k-"
NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")
# What makes a spreadsheet compute a cell, in the width of East Asian keyboards too (OWASP, "CSV injection").
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
LONGEST = 32_000  # characters of a cell; spreadsheets cut at 32 767 without a word
JOINERS = "\u200c\u200d"  # invisible, but parts of ordinary words and emoji
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories of control and format characters


@dataclass(frozen=True)
class Labels:
    """What one person said of answers.

    Args:
        ratings: `Answer.key` -> verdict, with a score for each cell that is filled.
        empty: rows without any number.
        partial: rows with one number of the two.
        unknown: rows of answers that were not given.
        absent: answers that were given but are not in the file.
    """

    ratings: dict[str, Verdict]
    empty: int
    partial: int
    unknown: int
    absent: int

    @property
    def account(self) -> str:
        """The counts in words."""
        return (
            f"{len(self.ratings)} labelled ({self.partial} only in part), {self.empty} empty, "
            f"{self.unknown} of unknown answers, {self.absent} answers not in the file"
        )


def write_labels(
    path: Path | str, answers: Sequence[Answer], n: int | None = None, seed: int = 0, blind: bool = True
) -> list[Answer]:
    """Write answers for a person to score from 0 to 100, in a random order that hides who said what.

    As judges do, people see the last user turn and the answer. A text that a spreadsheet would compute gets
    an apostrophe in front; control and other invisible characters are shown as escapes like `\\x1b`.

    Args:
        n: a sample of so many, as equal as can be over models, then over questions; None: all.
        seed: key of the order and the sample.
        blind: leave the model's name out.

    Returns:
        The answers in the order of the file.

    Raises:
        DataError: no answers, two with one key, a bad n, or there is a file already.
        RunError: the file cannot be written.
    """
    path = Path(path)
    by_key = _by_key(answers)
    if not by_key:
        raise DataError("there are no answers to label")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise DataError(f"n: expected a whole number from 1 on, or None for all, got {n!r}")
    if path.exists():
        raise DataError(f"{path}: exists already and may hold labels; delete it or choose another name")
    chosen = _sample(answers, len(answers) if n is None else n, seed)
    chosen.sort(key=lambda answer: keyed_seed(seed, "label-order", answer.key))
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS if blind else ("key", "model", *COLUMNS[1:]))
    for answer in chosen:
        model = [] if blind else [cell(answer.model)]
        writer.writerow([MARK + answer.key, *model, cell(answer.asked), cell(answer.text), "", "", ""])
    write_text(path, "\ufeff" + text.getvalue())  # without the mark some spreadsheets take it for Latin-1
    return chosen


def _by_key(answers: Sequence[Answer]) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for answer in answers:
        if answer.key in found:
            raise DataError(
                f"two answers have the key {answer.key} (model {answer.model}, prompt {answer.prompt}, "
                f"sample {answer.sample}); give one once, or equal answers different sample numbers"
            )
        found[answer.key] = answer
    return found


def _sample(answers: Sequence[Answer], n: int, seed: int) -> list[Answer]:
    """First one answer of every model (to a question of each), then a second one, and so on."""

    def drawn(answer: Answer) -> int:
        return keyed_seed(seed, "label-sample", answer.key)

    turns: dict[str, int] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for answer in sorted(answers, key=drawn):
        stratum = (answer.model, answer.questions, answer.question)
        turns[answer.key] = counts[stratum] = counts.get(stratum, -1) + 1
    places: dict[str, int] = {}
    of_model: dict[str, int] = {}
    for answer in sorted(answers, key=lambda one: (turns[one.key], drawn(one))):
        places[answer.key] = of_model[answer.model] = of_model.get(answer.model, -1) + 1
    return sorted(answers, key=lambda one: (places[one.key], drawn(one)))[:n]


def cell(text: str) -> str:
    """A text that a spreadsheet shows as it is: computed by none, nothing in it invisible, not too long."""
    shown = "".join(_visible(char) for char in text)
    if len(shown) > LONGEST:
        shown = f"{shown[:LONGEST]} […{len(shown) - LONGEST} more characters are not shown]"
    bare = shown.lstrip()  # some spreadsheets skip spaces, tabs and line ends before a formula
    return f"'{shown}" if bare.startswith(FORMULA) or shown[:1] == "\t" else shown


def _visible(char: str) -> str:
    if char in "\n\t" or char in JOINERS or unicodedata.category(char) not in INVISIBLE:
        return char
    code = ord(char)
    if char == "\r":
        return "\\r"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def read_labels(
    path: Path | str, answers: Sequence[Answer], rater: str = "human", allow_unknown: bool = False
) -> Labels:
    """Read back what a person filled in; answers are found by key, texts and other columns are not read.

    A score is written in ASCII digits with an optional decimal point, 0 to 100; plain spaces around it do
    not count. A cell may be empty. Commas, semicolons and tabs may separate the columns, as a spreadsheet
    likes.

    Args:
        rater: the name in verdicts and tables.
        allow_unknown: leave out rows of answers that were not given, and count them.

    Raises:
        DataError: the file cannot be read, or the first row with a bad score, a key that occurs twice or
            that no answer has, with its line.
    """
    path = Path(path)
    wanted = _by_key(answers)
    ratings: dict[str, Verdict] = {}
    lines: dict[str, int] = {}
    empty = partial = unknown = 0
    for line, row in _rows(path):
        where, key = f"{path}:{line}", row["key"].strip(" ").removeprefix(MARK)
        scores = {name: _score(row[name], f"{where}: {name}", row["note"]) for name in SCORED}
        given = {name: score for name, score in scores.items() if score is not None}
        if not key:
            raise DataError(f"{where}: the key is missing; restore it from the file that was written")
        if key in lines:
            raise DataError(f"{where}: the answer {key} was labelled on line {lines[key]} already; keep one")
        lines[key] = line
        if key not in wanted:
            if not allow_unknown:
                raise DataError(
                    f"{where}: no answer has the key {key}; give the answers that the file was written for, "
                    "or allow unknown keys"
                )
            unknown += 1
        elif not given:
            empty += 1
        else:
            partial += len(given) < len(SCORED)
            ratings[key] = Verdict(rater, given)
    return Labels(ratings, empty, partial, unknown, sum(key not in lines for key in wanted))


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line and cells of each row that is not blank."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: is not UTF-8; save it as "CSV UTF-8"') from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            if any(part.strip() for part in row):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not CSV ({error}); save it as CSV again") from error
    header = [name.strip(" ").lower() for name in rows[0][1]] if rows else []
    for name in ("key", *SCORED):
        if header.count(name) != 1:
            raise DataError(
                f"{path}: expected one column {name}, found {header.count(name)} (the first line has "
                f"{', '.join(header) or 'nothing'}); keep the header that was written"
            )
    return [(line, _cells(row, header, f"{path}:{line}")) for line, row in rows[1:]]


def _cells(row: list[str], header: list[str], where: str) -> dict[str, str]:
    """Cells by column; a spreadsheet may leave out empty cells at the end of a row, or add some."""
    if any(part.strip() for part in row[len(header) :]):
        raise DataError(f"{where}: has {len(row)} cells but the header {len(header)}; is a quote missing?")
    cells = {"note": "", **dict.fromkeys(header, "")}
    return {**cells, **dict(zip(header, row, strict=False))}


def _score(text: str, where: str, note: str) -> Score | None:
    bare = text.strip(" ")
    if not bare:
        return None
    if not NUMBER.fullmatch(bare) or not 0 <= float(bare) <= 100:
        raise DataError(f"{where}: expected a number from 0 to 100 such as 85 or 85.5, got {text!r}")
    return Score(float(bare), None, METHOD, detail=note[:200])
