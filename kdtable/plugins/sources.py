"""The source of a plug-in: its file, and the modules beside it that it imports, with a hash of their contents."""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

#: Hex digits of a hash of sources, as many as a run's id has.
DIGITS = 16


def source_hash(file: Path, siblings: Mapping[str, Path]) -> str:
    """Hash a file with the modules that it imports; without any it begins as the file's SHA-256 does."""
    digest = hashlib.sha256(file.read_bytes())
    for name in sorted(siblings):
        digest.update(f"\0{name}\0".encode() + siblings[name].read_bytes())
    return digest.hexdigest()[:DIGITS]


@lru_cache
def installed_hash(*modules: str) -> str:
    """Hash the sources of installed modules, with what they import of their own top-level packages."""
    files: dict[str, Path] = {}
    for module in modules:
        spec = find_spec(module)
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            file = Path(spec.origin)
            top, *inner = module.split(".")
            root = file.parents[len(inner) + (file.name == "__init__.py")]
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            files |= {module: file} | imported(file, root, package, only=top)
    if len(files) == 1:
        return source_hash(next(iter(files.values())), {})
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"\0{name}\0".encode() + files[name].read_bytes())
    return digest.hexdigest()[:DIGITS]


def imported(file: Path, root: Path, package: str = "", only: str | None = None) -> dict[str, Path]:
    """Modules below a folder that a file imports, directly or through others, by name.

    Imports inside functions count. What is imported by a computed name is not seen.

    Args:
        file: the file.
        root: the folder in which top-level modules are looked for.
        package: the file's own package, for relative imports; "" for none.
        only: the top-level module to follow; by default all, except kdtable itself.
    """
    found: dict[str, Path] = {}
    left = [(file, package)]
    while left:
        path, within = left.pop()
        for name in _names(ast.parse(path.read_bytes(), str(path)), within):
            top = name.partition(".")[0]
            if name in found or top == "kdtable" or only not in (None, top):
                continue
            if (module := _located(root, name)) is not None and module != file:
                found[name] = module
                left.append((module, name if module.name == "__init__.py" else name.rpartition(".")[0]))
    return found


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that may be modules: everything imported, with the packages around it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted: Iterable[str] = (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if package else []
            above = parents[: len(parents) + 1 - node.level] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            wanted = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in wanted:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _located(root: Path, name: str) -> Path | None:
    stem = root.joinpath(*name.split("."))
    candidates = (stem / "__init__.py", stem.with_name(f"{stem.name}.py"))
    return next((path for path in candidates if path.is_file()), None)
