"""Imports run one way: a file imports its own group or folder, or what stands to the left of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    ["errors"],
    ["config", "hooks", "stats", "proportions", "files", "progress"],
    ["packing"],
    ["backbone", "loading", "chat", "origin", "runs"],
    ["datamodules"],
    ["states"],
    ["interventions"],
    ["modules"],
    ["planning"],
    ["generation"],
    ["judges"],
    ["measurements"],
    ["figures"],
    ["evaluation"],
    ["callbacks"],
    ["report"],
    ["building", "trainer", "experiment", "comparison", "suite", "suite_status", "suite_tables"],
    ["analyses"],
    ["reproduce"],
    ["quiet", "chatting", "commands", "cli", "__main__", "train"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import that runs, inside functions too.

    Args:
        package: of the file, which relative imports start from.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from imports(ast.Module([other], []), package)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            start = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        else:
            yield from imports(node, package)


def upward(path: Path, root: Path = ROOT) -> list[str]:
    """`file:line` and the import, for each import of a file that is not allowed."""
    relative = path.relative_to(root)
    parts = relative.with_suffix("").parts
    own = parts[1] if parts[0] == "em" else parts[0]
    if parts == ("em", "__init__"):
        rank = -1  # imported by every other file, so it may import none of them
    elif own in RANK:
        rank = RANK[own]
    else:
        return [f"{relative}: {own} has no place in LAYERS"]
    found = []
    for line, name in imports(ast.parse(path.read_text(encoding="utf-8")), ".".join(relative.parent.parts)):
        target = name.split(".")
        if target[0] != "em" or len(target) == 1:
            continue
        if target[1] not in RANK:
            found.append(f"{relative}:{line}: imports {name}, which has no place in LAYERS")
        elif RANK[target[1]] > rank:
            found.append(f"{relative}:{line}: imports {name}, which stands to its right")
    return found


def files() -> list[Path]:
    return [*sorted((ROOT / "em").rglob("*.py")), ROOT / "train.py"]


def test_there_are_files_to_look_at() -> None:
    names = {str(path.relative_to(ROOT)) for path in files()}
    assert {"train.py", "em/errors.py", "em/callbacks/base.py", "em/datamodules/rows.py"} <= names


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_to_the_left(path: Path) -> None:
    assert upward(path) == []


CAUGHT = [
    (
        "hooks.py",
        "import torch\n\nimport em.runs\n",
        ["em/hooks.py:3: imports em.runs, which stands to its right"],
    ),
    (
        "chat.py",
        "from em import hooks, callbacks\n",
        ["em/chat.py:1: imports em.callbacks, which stands to its right"],
    ),
    (
        "datamodules/rows.py",
        "def late():\n    try:\n        from em.modules.sft import SFTModule\n    finally:\n        pass\n",
        ["em/datamodules/rows.py:3: imports em.modules.sft.SFTModule, which stands to its right"],
    ),
    (
        "modules/sft.py",
        "from ..callbacks import base\n",
        ["em/modules/sft.py:1: imports em.callbacks.base, which"],
    ),
    (
        "backbone.py",
        "from . import report\n",
        ["em/backbone.py:1: imports em.report, which stands to its right"],
    ),
    (
        "runs.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import em.suite\n",
        ["em/runs.py:5: imports em.suite, which stands to its right"],
    ),
    ("files.py", "import em.unheard\n", ["em/files.py:1: imports em.unheard, which has no place in LAYERS"]),
    ("unheard.py", "", ["em/unheard.py: unheard has no place in LAYERS"]),
    ("errors.py", "from em.hooks import Site\n", ["em/errors.py:1: imports em.hooks.Site, which"]),
    ("__init__.py", "from em.config import load\n", ["em/__init__.py:1: imports em.config.load, which"]),
]
ALLOWED = [
    (
        "runs.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from em.interventions.base import Update\n",
    ),
    ("stats.py", "from em.errors import EmError\nfrom em.hooks import keyed_seed\n"),
    (
        "modules/sft.py",
        "import torch, emcee\nfrom em import hooks\nfrom .losses import x\nfrom em.modules import y\n",
    ),
    ("suite.py", "from em.experiment import train\nimport em.report\n"),
]


def write(root: Path, name: str, text: str) -> Path:
    path = root / "em" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "text", "expected"), CAUGHT)
def test_an_upward_import_is_caught(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    found = upward(write(tmp_path, name, text), tmp_path)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "text"), ALLOWED)
def test_an_import_to_the_left_or_beside_is_not(tmp_path: Path, name: str, text: str) -> None:
    assert upward(write(tmp_path, name, text), tmp_path) == []
