"""Finds where a dotted path is defined and parses that file, without importing any package."""

import ast
import importlib.util
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from em.errors import ConfigError

Definition = ast.ClassDef | ast.FunctionDef

DEPTH = 20  # re-exports and bases followed before a path counts as circular


@dataclass(frozen=True)
class Source:
    """One parsed module: what it defines, assigns and imports at its top level."""

    module: str
    path: Path
    definitions: dict[str, Definition] = field(default_factory=dict)
    assigned: dict[str, ast.expr] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)  # local name -> dotted path

    def qualified(self, node: ast.expr) -> str | None:
        """The dotted path that a name or attribute stands for in this module."""
        if isinstance(node, ast.Subscript):  # Base[T] is Base
            return self.qualified(node.value)
        if isinstance(node, ast.Attribute):
            parent = self.qualified(node.value)
            return f"{parent}.{node.attr}" if parent else None
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.definitions or node.id in self.assigned:
            return f"{self.module}.{node.id}"
        return self.imported.get(node.id, node.id)


def locate(target: str) -> tuple[Source, Definition]:
    """The definition behind `package.module.Name`, followed through re-exports.

    Raises:
        ConfigError: there is no such module, file or name.
    """
    asked = target
    for _ in range(DEPTH):
        module, _, name = target.rpartition(".")
        if not module:
            raise ConfigError(f"expected a dotted path such as package.module.Class, got {asked!r}")
        source = read(module)
        if name in source.definitions:
            return source, source.definitions[name]
        if source.imported.get(name, target) == target:
            near = get_close_matches(name, source.definitions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{module} has no class {name!r}{hint}")
        target = source.imported[name]
    raise ConfigError(f"{asked} is imported in a circle")


def read(module: str) -> Source:
    """Parse a module.

    Raises:
        ConfigError: the module does not exist, has no Python source or cannot be parsed.
    """
    path = _file(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return _parse(module, package, path, path.stat().st_mtime_ns)


def _file(module: str) -> Path:
    # importlib.util.find_spec("lightning.pytorch") would import lightning, and with it torch; so the
    # import system is asked for the top-level package only, and folders for the rest.
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:  # a module without a spec, such as __main__ of a script
        spec = None
    if spec is None:
        raise ConfigError(f"no module {module!r}")
    if not rest:
        if not spec.origin or not spec.origin.endswith(".py"):
            raise ConfigError(f"{module} has no Python source to read options from")
        return Path(spec.origin)
    for location in spec.submodule_search_locations or ():
        stem = Path(location).joinpath(*rest)
        for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if all(rest) and path.is_file():
                return path
    raise ConfigError(f"no module {module!r}")


@lru_cache(maxsize=512)
def _parse(module: str, package: str, path: Path, changed: int) -> Source:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    source = Source(module, path)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            source.definitions[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            source.assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            source.assigned[node.target.id] = node.value
    for inner in ast.walk(tree):  # imports may stand under `if TYPE_CHECKING` or `try`
        if isinstance(inner, ast.Import | ast.ImportFrom):
            source.imported.update(_imports(inner, package))
    return source


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, str]:
    if isinstance(node, ast.Import):
        # `import a.b` binds a; `import a.b as c` binds a.b
        return {name.asname or name.name.split(".")[0]: _bound(name) for name in node.names}
    origin = node.module or ""
    if node.level:
        parents = package.split(".")
        kept = parents[: len(parents) - node.level + 1]
        origin = ".".join([*kept, node.module] if node.module else kept)
    return {name.asname or name.name: f"{origin}.{name.name}" for name in node.names}


def _bound(name: ast.alias) -> str:
    return name.name if name.asname else name.name.split(".")[0]
