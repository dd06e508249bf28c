"""The constructor options of a class, read from its source.

Importing a class to look at it would import torch, lightning and peft, which takes seconds; a mistake in
a configuration must be shown at once.
"""

import ast
from dataclasses import dataclass, field
from typing import Any

from em.config.annotations import interpret
from em.config.definitions import DEPTH, Definition, Source, locate
from em.errors import ConfigError

NEUTRAL = frozenset({"object", "abc.ABC", "typing.Generic", "typing.Protocol"})
CLOSED = frozenset({"torch.nn.Module"})  # takes *args and **kwargs, but only to refuse them


@dataclass(frozen=True)
class Option:
    """One keyword of a constructor.

    Args:
        annotation: its type; `Any` where the source has none or none that is understood.
        default: the literal default, or the source text of a default that is not a literal.
    """

    name: str
    annotation: Any = Any
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Signature:
    """All options of a constructor; `open` if it also takes keywords that its source does not name."""

    options: dict[str, Option] = field(default_factory=dict)
    open: bool = False


def options(target: str) -> dict[str, Option]:
    """The options of the class or function at a dotted path, by name, in order of definition.

    Raises:
        ConfigError: there is no such class, or its file cannot be parsed.
    """
    return signature(target).options


def signature(target: str) -> Signature:
    """Like `options`, and whether further keywords are taken.

    Raises:
        ConfigError: there is no such class, or its file cannot be parsed.
    """
    source, node = locate(target)
    if isinstance(node, ast.FunctionDef):
        return Signature(_parameters(node, source, bound=False), node.args.kwarg is not None)
    return _of_class(source, node, depth=0)


def attribute(target: str, name: str) -> Any:
    """The literal value of a class attribute, own or inherited; None where no readable class sets it."""
    return _attribute(*locate(target), name, depth=0)


def _attribute(source: Source, node: Definition, name: str, depth: int) -> Any:
    if not isinstance(node, ast.ClassDef) or depth > DEPTH:
        return None
    for item in node.body:
        if isinstance(item, ast.Assign | ast.AnnAssign):
            target = item.targets[0] if isinstance(item, ast.Assign) else item.target
            if isinstance(target, ast.Name) and target.id == name:
                return _value(item.value)
    for base in node.bases:
        try:
            found = _attribute(*locate(source.qualified(base) or ""), name, depth + 1)
        except ConfigError:  # a compiled or built-in base
            continue
        if found is not None:
            return found
    return None


def _of_class(source: Source, node: ast.ClassDef, depth: int) -> Signature:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            own = _parameters(item, source, bound=True)
            if item.args.kwarg is None:
                return Signature(own)
            inherited = _inherited(source, node, depth)
            consumed_here = all(source.qualified(base) in NEUTRAL for base in node.bases)
            return Signature({**inherited.options, **own}, inherited.open or consumed_here)
    if _is_dataclass(node):
        inherited = _inherited(source, node, depth)
        return Signature({**inherited.options, **_fields(node, source)}, inherited.open)
    return _inherited(source, node, depth)


def _inherited(source: Source, node: ast.ClassDef, depth: int) -> Signature:
    """What the first base that takes any options takes."""
    unreadable = depth > DEPTH
    for base in [] if unreadable else node.bases:
        name = source.qualified(base)
        if name is None or name in NEUTRAL or name in CLOSED:
            continue
        try:
            found, definition = locate(name)
        except ConfigError:  # a compiled or star-imported base: its options are not knowable from here
            unreadable = True
            continue
        inherited = _of_definition(found, definition, depth + 1)
        if inherited.options or inherited.open:
            return inherited
    return Signature(open=unreadable)


def _of_definition(source: Source, node: Definition, depth: int) -> Signature:
    return _of_class(source, node, depth) if isinstance(node, ast.ClassDef) else Signature(open=True)


def _parameters(node: ast.FunctionDef, source: Source, bound: bool) -> dict[str, Option]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args]
    given: list[ast.expr | None] = [None] * (len(named) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(named, given, strict=True))
    pairs = pairs[max(len(arguments.posonlyargs), int(bound)) :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {
        argument.arg: Option(
            argument.arg, interpret(argument.annotation, source), _value(default), default is None
        )
        for argument, default in pairs
    }


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_called(decorator) == "dataclass" for decorator in node.decorator_list)


def _fields(node: ast.ClassDef, source: Source) -> dict[str, Option]:
    found = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = item.annotation
        head = annotation.value if isinstance(annotation, ast.Subscript) else annotation
        if _called(head) in ("ClassVar", "KW_ONLY"):
            continue
        default, required = item.value, item.value is None
        if isinstance(default, ast.Call) and _called(default) == "field":
            given = {keyword.arg: keyword.value for keyword in default.keywords}
            if "init" in given and _value(given["init"]) is False:
                continue  # set by the class itself
            required = not given.keys() & {"default", "default_factory"}
            default = given.get("default", given.get("default_factory"))
        name = item.target.id
        found[name] = Option(name, interpret(annotation, source), _value(default), required)
    return found


def _called(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _called(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _value(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
