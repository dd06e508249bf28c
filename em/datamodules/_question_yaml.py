"""YAML files from strangers: only plain values, of bounded size, and no key twice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from em.errors import DataError

MAX_BYTES = 1_000_000
# A file of a few hundred bytes can stand for billions of values, by aliases of aliases (a "billion laughs").
MAX_VALUES = 50_000
MAX_CHARACTERS = 50_000_000
MAX_DEPTH = 20
TOO_LARGE = (
    f"too large with its aliases written out: at most {MAX_VALUES:,} values, {MAX_CHARACTERS:,} characters "
    f"and {MAX_DEPTH} levels; split it into several files"
)
TEXT = "tag:yaml.org,2002:str"


def read_plain_yaml(path: Path) -> Any:
    """The value of one YAML file: mappings, lists, text, numbers, dates, true, false and null.

    Raises:
        DataError: it cannot be read, is not UTF-8 or not YAML, is too large, or gives a key twice; with its
            line.
    """
    text = _decoded(path)
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise DataError(f"{path}:{number}: not valid YAML: unprintable ({error.reason})") from error
    except ValueError as error:  # a date in month 13, a number of 5000 digits
        raise DataError(f"{path}: not YAML that can be read ({error})") from error


def _decoded(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes; split it into several question files")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error


@dataclass(frozen=True)
class _Extent:
    """How large a value is with all its aliases written out."""

    values: int
    characters: int
    depth: int


class _Loader(yaml.SafeLoader):
    """Refuses, while the file is read and before any value is made, what is too large or ambiguous."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.open = 0
        self.read = 0
        self.extents: dict[yaml.Node, _Extent] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag is not None and tag != TEXT:
            _refuse(f"the tag {tag.replace('tag:yaml.org,2002:', '!!')} is not used here", event)
        self.open += 1
        self.read += 1
        if self.read > MAX_VALUES:  # at once: a million small values would take a minute to read
            _refuse(TOO_LARGE, event)
        if self.open > MAX_DEPTH:
            _refuse(f"nested more than {MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self.open -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self.extents:
                _refuse(f"the alias *{event.anchor} stands inside of what it names", event)
        elif node is not None:
            self.extents[node] = self._extent(node, event)
        return node

    def _extent(self, node: yaml.Node, event: Any) -> _Extent:
        parts: list[_Extent] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated(node)
            parts = [self.extents[part] for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = [self.extents[part] for part in node.value]
        extent = _Extent(
            1 + sum(part.values for part in parts),
            sum(part.characters for part in parts) if parts else len(node.value),
            1 + max((part.depth for part in parts), default=0),
        )
        if extent.values > MAX_VALUES or extent.characters > MAX_CHARACTERS or extent.depth > MAX_DEPTH:
            _refuse(TOO_LARGE, event)
        return extent


def _refuse_repeated(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                _refuse(f"the key {key.value!r} comes twice", key)
            seen.add((key.tag, key.value))


def _refuse(problem: str, where: Any) -> None:
    raise yaml.composer.ComposerError(None, None, problem, where.start_mark)
