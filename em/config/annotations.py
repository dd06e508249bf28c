"""Turns the source of a type annotation into a Python type, without evaluating it."""

import ast
from collections.abc import Sequence
from functools import reduce
from operator import or_
from types import GenericAlias, NoneType
from typing import Any, Literal

from em.config import schema
from em.config.definitions import Source, read
from em.errors import ConfigError

SIMPLE: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "None": NoneType, "Any": Any}
CONTAINERS: dict[str, Any] = {
    "list": list,
    "List": list,
    "tuple": tuple,
    "Tuple": tuple,
    "dict": dict,
    "Dict": dict,
    "Mapping": dict,
    "Sequence": Sequence,
    "Iterable": Sequence,
    "Collection": Sequence,
}
WRAPPERS = ("Annotated", "InitVar", "Final", "Required", "NotRequired")
DEPTH = 20  # of aliases and nesting; a recursive alias reads as Any


def interpret(node: ast.expr | None, source: Source, depth: int = 0) -> Any:
    """The type an annotation stands for; whatever is not understood is `Any`.

    Args:
        node: the annotation, or None where there is none.
        source: the module it stands in, for aliases such as `Point = Literal["mlp", "block"]`.
    """
    if node is None or depth > DEPTH:
        return Any
    if isinstance(node, ast.Constant):
        return _constant(node, source, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([interpret(side, source, depth + 1) for side in (node.left, node.right)])
    if isinstance(node, ast.Subscript):
        return _subscript(node, source, depth + 1)
    if isinstance(node, ast.Name | ast.Attribute):
        name = _last_name(node)
        known = SIMPLE.get(name, CONTAINERS.get(name))
        return known if known is not None else _alias(node, source, depth + 1)
    return Any


def _constant(node: ast.Constant, source: Source, depth: int) -> Any:
    if node.value is None:
        return NoneType
    if not isinstance(node.value, str):
        return Any
    try:
        inner = ast.parse(node.value, mode="eval").body
    except SyntaxError:
        return Any
    return interpret(inner, source, depth + 1)


def _subscript(node: ast.Subscript, source: Source, depth: int) -> Any:
    head = _last_name(node.value)
    items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if head == "Literal":
        return _literal(items)
    if head in WRAPPERS:
        return interpret(items[0], source, depth)
    types = [
        ... if isinstance(item, ast.Constant) and item.value is ... else interpret(item, source, depth)
        for item in items
    ]
    if head == "Optional":
        return _union([types[0], NoneType])
    if head == "Union":
        return _union(types)
    return GenericAlias(CONTAINERS[head], tuple(types)) if head in CONTAINERS else Any


def _literal(items: list[ast.expr]) -> Any:
    try:
        values = tuple(ast.literal_eval(item) for item in items)
    except ValueError:  # an enum member
        return Any
    literal: Any = Literal
    return literal[values]


def _union(types: list[Any]) -> Any:
    return Any if Any in types else reduce(or_, types)


def _alias(node: ast.expr, source: Source, depth: int) -> Any:
    dotted = source.qualified(node)
    for _ in range(DEPTH):
        module, _, name = (dotted or "").rpartition(".")
        if not module:
            return Any
        try:
            source = read(module)
        except ConfigError:  # an annotation from a compiled or missing module is not the user's problem
            return Any
        if module == schema.__name__ and name in source.definitions:
            return getattr(schema, name)  # `convert` checks a section against its dataclass
        if name in source.assigned:
            return interpret(source.assigned[name], source, depth)
        if source.imported.get(name, dotted) == dotted:
            return Any
        dotted = source.imported[name]
    return Any


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
