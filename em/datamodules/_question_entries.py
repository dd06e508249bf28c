"""The entries of a file of questions, in the format of the published question files, checked."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from em.datamodules._question_yaml import read_plain_yaml
from em.errors import DataError

TYPES = ("free_form_judge_0_100", "free_form")
# Samples, judge and metrics of an evaluation come from its own settings, so that two sets are treated alike.
ELSEWHERE = ("type", "samples_per_paraphrase", "judge")
KEYS = ("id", *ELSEWHERE, "paraphrases", "system", "judge_prompts")
TOP_KEYS = ("domain", "questions")
FORM = "expected a list of questions, or a mapping with questions and domain"
SHOWN = 50


@dataclass(frozen=True)
class Entry:
    """One question as a file has it.

    Args:
        id: unique in the file.
        paraphrases: the user turns, at least one.
        system: the system turn, if there is one.
        judge_prompts: templates by metric.
    """

    id: str
    paraphrases: tuple[str, ...]
    system: str | None
    judge_prompts: dict[str, str]


@dataclass(frozen=True)
class QuestionFile:
    """A file of questions.

    Args:
        domain: the training domain that all questions are from, if the file names one.
        judge_prompts: templates by metric, over all entries.
    """

    entries: tuple[Entry, ...]
    domain: str | None
    judge_prompts: dict[str, str]


def read_question_file(path: Path) -> QuestionFile:
    """Read a YAML file of questions.

    Raises:
        DataError: it cannot be read, or all that is wrong with its entries, a line each.
    """
    top = read_plain_yaml(path)
    problems: list[str] = []
    rows, domain = _top(top, problems)
    if not rows and not problems:
        problems.append("holds no questions")
    entries = [_entry(row, _place(row, number), problems) for number, row in enumerate(rows, 1)]
    read = [entry for entry in entries if entry is not None]
    _refuse_repeated(read, problems)
    prompts = _common_prompts(read, problems)
    if problems:
        raise DataError("\n".join(f"{path}: {line}" for line in shown(problems)))
    return QuestionFile(tuple(read), domain, prompts)


def shown(problems: list[str]) -> list[str]:
    """The first problems, and how many more there are."""
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"and {more} more problems"] if more > 0 else [])]


def _top(top: Any, problems: list[str]) -> tuple[list[Any], str | None]:
    if isinstance(top, list) or top is None:
        return top or [], None
    if not isinstance(top, dict) or "questions" not in top:
        problems.append(f"{FORM}, got {_kind(top)}")
        return [], None
    _refuse_unknown(top, TOP_KEYS, "", problems)
    domain = _text(top["domain"], "domain", problems) if "domain" in top else None
    if not isinstance(top["questions"], list):
        problems.append(f"questions: expected a list, got {_kind(top['questions'])}")
        return [], domain
    return top["questions"], domain


def _entry(row: Any, place: str, problems: list[str]) -> Entry | None:
    if not isinstance(row, dict):
        problems.append(f"{place}: expected a mapping with id and paraphrases, got {_kind(row)}")
        return None
    _refuse_unknown(row, KEYS, f"{place}: ", problems)
    for key in ("id", "paraphrases"):
        if key not in row:
            problems.append(f"{place}: {key} is missing")
    name = _id(row["id"], place, problems) if "id" in row else None
    _check_elsewhere(row, place, problems)
    texts = _paraphrases(row["paraphrases"], place, problems) if "paraphrases" in row else ()
    system = _text(row["system"], f"{place}: system", problems) if row.get("system") is not None else None
    prompts = _judge_prompts(row["judge_prompts"], place, problems) if "judge_prompts" in row else {}
    return Entry(name, texts, system, prompts) if name else None


def _place(row: Any, number: int) -> str:
    name = row.get("id") if isinstance(row, dict) else None
    if isinstance(name, str) and name.strip() and name.isprintable():
        return f"entry {number} ({name[:60]})"
    return f"entry {number}"


def _id(value: Any, place: str, problems: list[str]) -> str | None:
    name = _text(value, f"{place}: id", problems)
    if name and ("#" in name or not name.isprintable() or name != " ".join(name.split())):
        problems.append(f"{place}: id: expected printable text without # and extra blanks, got {name[:60]!a}")
        return None
    return name


def _check_elsewhere(row: dict[Any, Any], place: str, problems: list[str]) -> None:
    """What is not used must still be of the format."""
    if "type" in row and row["type"] not in TYPES:
        problems.append(f"{place}: type: expected {' or '.join(TYPES)}, got {_shown_value(row['type'])}")
    samples = row.get("samples_per_paraphrase", 1)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        problems.append(
            f"{place}: samples_per_paraphrase: expected a whole number from 1 on, got {_shown_value(samples)}"
        )
    if "judge" in row:
        _text(row["judge"], f"{place}: judge", problems)


def _paraphrases(value: Any, place: str, problems: list[str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else _kind(value)
        problems.append(f"{place}: paraphrases: expected a list of one text or more, got {got}")
        return ()
    first: dict[str, int] = {}
    for number, item in enumerate(value):
        where = f"{place}: paraphrases[{number}]"
        text = _text(item, where, problems)
        if text is not None and first.setdefault(text, number) != number:
            problems.append(f"{where}: the same text as paraphrases[{first[text]}]")
    return tuple(first)


def _judge_prompts(value: Any, place: str, problems: list[str]) -> dict[str, str]:
    if not isinstance(value, dict):
        problems.append(f"{place}: judge_prompts: expected texts by metric, got {_kind(value)}")
        return {}
    read = {
        _text(metric, f"{place}: a metric of judge_prompts", problems): _text(
            text, f"{place}: judge_prompts.{metric}", problems
        )
        for metric, text in value.items()
    }
    return {metric: text for metric, text in read.items() if metric is not None and text is not None}


def _refuse_repeated(entries: list[Entry], problems: list[str]) -> None:
    ids: set[str] = set()
    prompts: dict[tuple[str | None, str], str] = {}
    for entry in entries:
        if entry.id in ids:
            problems.append(f"the id {entry.id} comes twice; each question needs its own")
            continue
        ids.add(entry.id)
        for text in entry.paraphrases:
            other = prompts.setdefault((entry.system, text), entry.id)
            if other != entry.id:
                problems.append(f"{entry.id} and {other} ask the same; they would count as two questions")


def _common_prompts(entries: list[Entry], problems: list[str]) -> dict[str, str]:
    common: dict[str, tuple[str, str]] = {}
    for entry in entries:
        for metric, text in entry.judge_prompts.items():
            first, template = common.setdefault(metric, (entry.id, text))
            if template != text:
                problems.append(
                    f"judge_prompts.{metric} of {entry.id} is not that of {first}; "
                    "a file has one for each metric, so put these questions in a file of their own"
                )
    return {metric: template for metric, (_, template) in common.items()}


def _refuse_unknown(row: dict[Any, Any], known: tuple[str, ...], prefix: str, problems: list[str]) -> None:
    for key in row:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            problems.append(f"{prefix}unknown key {str(key)[:60]}; {hint}")


def _text(value: Any, where: str, problems: list[str]) -> str | None:
    if not isinstance(value, str):
        hint = "; put text with a colon in quotes" if isinstance(value, dict) else "; put it in quotes"
        hint = "" if value is None or isinstance(value, list) else hint
        problems.append(f"{where}: expected text, got {_kind(value)}{hint}")
    elif not value.strip():
        problems.append(f"{where}: is empty")
    elif any("\ud800" <= character <= "\udfff" for character in value):
        half = r"half a character (a surrogate escape such as \ud83d)"
        problems.append(f"{where}: has {half}; write the character itself")
    else:
        return value
    return None


def _shown_value(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, str | int | float) else _kind(value)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    kinds = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number"}
    return kinds.get(type(value), "a number" if isinstance(value, float) else "a date")
