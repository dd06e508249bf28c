"""How names and numbers are written in figures, tables and text alternatives."""

import re
from collections.abc import Sequence
from numbers import Integral

MISSING = "–"
# Not allowed in XML, or able to reorder what stands around them in a sentence.
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def plain(text: str) -> str:
    """The text on one line, with a replacement character for what a browser or XML would not show."""
    return FORBIDDEN.sub("\ufffd", " ".join(text.split()))


def number(value: float | int | None) -> str:
    """Four significant digits with a true minus sign; whole numbers in full, `–` for a missing one."""
    if value is None:
        return MISSING
    if isinstance(value, Integral):
        return str(value).replace("-", "−")
    size = abs(value)
    if value == 0:
        text = "0"
    elif size >= 1e6 or size < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        text = f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif size >= 1000:
        text = f"{value:.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def shorten(name: str, length: int, share: float = 0.5) -> str:
    """The name with its middle left out, at most `length` characters.

    Args:
        share: of the kept characters that come from the start.
    """
    name = plain(name)
    if len(name) <= length:
        return name
    head = round((length - 1) * share)
    tail = length - 1 - head
    return f"{name[:head].rstrip()}…{name[len(name) - tail :].lstrip()}"


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Short forms that are still different from each other, in the same order.

    Run names often differ in one place only, so the gap is moved until that place is kept; names that agree
    at both ends are numbered.
    """
    texts: list[str] = []
    for share in (0.5, 0.3, 0.7, 0.15, 0.85):
        texts = [shorten(name, length, share) for name in names]
        if len(set(texts)) == len(set(names)):
            return texts
    order = {name: at + 1 for at, name in enumerate(dict.fromkeys(names))}
    return [f"{shorten(name, length - 4)} ({order[name]})" for name in names]


def sentence_list(parts: Sequence[str], room: int, what: str) -> str:
    """As many parts as fit into `room` characters, and how many there are besides."""
    kept: list[str] = []
    for at, part in enumerate(parts):
        rest = f" {len(parts) - at} more {what} are in the data table."
        if len(" ".join([*kept, part])) + len(rest) > room:
            return " ".join(kept) + rest
        kept.append(part)
    return " ".join(kept)
