"""English prose that every Python installation carries: the language reference, without its code."""

import platform
import re

from em.errors import DataError
from em.hooks import keyed_seed

NAME = "python-docs"
DESCRIPTION = "English prose of the Python language reference (pydoc_data.topics)"
MIN_WORDS = 40  # of a document
MIN_PROSE = 8  # words of a paragraph; shorter ones are headings, signatures and code
CODE = re.compile(r"::=|>>>|(?:^|\s)# |^\s*[+|]|={4}|-{4}|\*{4}", re.MULTILINE)
WORD = re.compile(r"[(\"'“‘*]*[A-Za-z][a-z]*(?:[-'’/][A-Za-z][a-z]*)*[.,;:!?)\"'”’*]*")
PLAIN = 0.75  # share of plain words that makes a paragraph prose


def python_docs(seed: int) -> list[tuple[str, str]]:
    """(topic, text) of every topic that has prose, in an order keyed by `seed`.

    The long topics repeat the short ones, so a paragraph is only in the shortest topic that has it.

    Raises:
        DataError: this Python was installed without its documentation topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        version = platform.python_version()
        raise DataError(f"Python {version} lacks pydoc_data.topics; give a corpus by path or hub") from error
    seen: set[str] = set()
    found = []
    for name, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        paragraphs = [part for part in dict.fromkeys(prose(text)) if part not in seen]
        seen.update(paragraphs)
        document = "\n\n".join(paragraphs)
        if len(document.split()) >= MIN_WORDS:
            found.append((name, document))
    return sorted(found, key=lambda item: keyed_seed(seed, "python-docs", item[0]))


def prose(text: str) -> list[str]:
    """The paragraphs of a reST text that are prose, each on one line."""
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", text) if not CODE.search(paragraph)]
    flowed = [" ".join(paragraph.split()) for paragraph in paragraphs]
    return [paragraph for paragraph in flowed if _is_prose(paragraph)]


def _is_prose(paragraph: str) -> bool:
    words = paragraph.removeprefix("* ").split()
    plain = sum(WORD.fullmatch(word) is not None for word in words)
    return len(words) >= MIN_PROSE and plain >= PLAIN * len(words)
