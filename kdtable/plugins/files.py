"""Load plug-ins from files, so that what they declare joins the registries."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kdtable.errors import BadRequest
from kdtable.plugins.declare import Declaration, declared_by, forget_declared
from kdtable.plugins.registry import Component, Registry
from kdtable.plugins.sources import imported, source_hash


@dataclass(frozen=True, slots=True)
class Kind:
    """What a plug-in may declare.

    Attributes:
        noun: in words.
        registry: "module:NAME" of the registry that it joins.
        check: "module:function" that checks a declaration, raises a `BadRequest`, and returns what makes its object.
    """

    noun: str
    registry: str
    check: str


#: By group, in the order in which a file's declarations join.
KINDS: Final[Mapping[str, Kind]] = {
    "kdtable.methods": Kind("method", "kdtable.methods:METHODS", "kdtable.papers.plugged:method"),
    "kdtable.models": Kind("network", "kdtable.models.names:NETWORKS", "kdtable.models.plugged:network"),
    "kdtable.datasets": Kind("data set", "kdtable.data.spec:BUILT_IN", "kdtable.data.plugged:dataset"),
    "kdtable.papers": Kind("paper", "kdtable.papers.loader:PAPERS", "kdtable.papers.plugged:paper"),
}


class BadPlugin(BadRequest):
    """A plug-in whose own code fails; the cause is its exception, and ``file`` the plug-in's path."""

    file: Path = Path()


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in's file, as it was loaded; another process loads the same with :func:`load_same`.

    Attributes:
        path: absolute.
        source: hash of its source, by which runs that use it are identified.
    """

    path: Path
    source: str


@dataclass(frozen=True, slots=True)
class _Loaded:
    plugin: Plugin
    module: str
    siblings: frozenset[str]
    names: tuple[tuple[str, str], ...]


_LOADED: Final[dict[Path, _Loaded]] = {}

#: Called when names have changed, to empty caches that hold objects by name.
FORGET: Final[list[Callable[[], object]]] = []


def loaded() -> tuple[Plugin, ...]:
    """The plug-ins of this process."""
    return tuple(one.plugin for one in _LOADED.values())


def load(files: Iterable[str | Path]) -> None:
    """Load plug-ins: Python files, and papers (TOML). One that has not changed since it was loaded is left as it is.

    Example:
        load(["my_dkd.py", "~/papers/mine.toml"])

    Raises:
        BadRequest: a file is missing, declares nothing or something unusable, or a name exists already.
        BadPlugin: a file cannot be imported; the cause is its own exception.
    """
    for file in files:
        path = Path(file).expanduser().resolve()
        if path.is_dir():
            raise BadRequest(f"--plugin {file} is a folder: name a file in it")
        if not path.is_file():
            raise BadRequest(f"--plugin {file}: there is no file {path}")
        if path.suffix not in (".py", ".toml"):
            raise BadRequest(f"--plugin {file}: a plug-in is a Python file (.py) or a paper (.toml)")
        _load(path)


def unload() -> None:
    """Take back everything that plug-ins of this process registered."""
    for one in list(_LOADED.values()):
        _unload(one)
    for forget in FORGET:
        forget()


def load_same(plugins: Iterable[Plugin]) -> None:
    """Load the plug-ins of another process, for a worker.

    Raises:
        BadRequest: as of :func:`load`, or a file is not the one that the other process has loaded.
    """
    for plugin in plugins:
        if plugin.path.is_file() and (found := _hashed(plugin.path)[0]) != plugin.source:
            raise BadRequest(
                f"plug-in {plugin.path} is another file here (source {found}) than where this command began "
                f"({plugin.source}): call again once it is the same everywhere"
            )
        load([plugin.path])


def _load(path: Path) -> None:
    before = _LOADED.get(path)
    source, siblings = _hashed(path)
    if before is not None:
        if before.plugin.source == source:
            return
        _unload(before)
    try:
        if path.suffix == ".toml":
            module, declared = "", [Declaration("kdtable.papers", path.stem, path)]
        else:
            stem = re.sub(r"\W", "_", path.stem)
            module = f"kdtable_plugin_{stem}_{source}"
            declared = _executed(path, module, siblings)
        names = _joined(path, source, declared)
    finally:
        for forget in FORGET:
            forget()
    _LOADED[path] = _Loaded(Plugin(path, source), module, frozenset(siblings), names)


def _unload(old: _Loaded) -> None:
    """Take back what a file registered, so that it can be loaded as it is now."""
    for group, name in old.names:
        registry(group).targets.pop(name, None)
    for module in (old.module, *old.siblings):
        sys.modules.pop(module, None)
    del _LOADED[old.plugin.path]


def _hashed(path: Path) -> tuple[str, dict[str, Path]]:
    """The hash of a file's source, and the modules beside it that it imports."""
    if path.suffix == ".toml":
        return source_hash(path, {}), {}
    try:
        siblings = imported(path, path.parent)
    except (SyntaxError, ValueError) as error:
        raise _bad(path, error) from error
    return source_hash(path, siblings), siblings


def _executed(path: Path, name: str, siblings: Mapping[str, Path]) -> list[Declaration]:
    """Execute a file as a module, and return what it declares."""
    forget_declared(name)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look it up
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # A cached sibling counts as fresh if it was edited within a second without a change of size.
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BadRequest as error:
        sys.modules.pop(name)
        raise BadRequest(f"plug-in {path}: {error}") from error
    except (Exception, SystemExit) as error:
        sys.modules.pop(name)
        raise _bad(path, error) from error
    finally:
        sys.dont_write_bytecode = wrote
    for sibling, file in siblings.items():
        other = getattr(sys.modules.get(sibling), "__file__", None)
        if other is not None and Path(other).resolve() != file.resolve():
            raise BadRequest(f"plug-in {path} imports '{sibling}', which is {other} here, not {file}: rename one")
    if not (declared := declared_by(name)):
        raise BadRequest(
            f'plug-in {path} registers nothing: put @plugins.method("NAME", terms=...) above a method\'s class, or '
            "plugins.network, plugins.dataset or plugins.paper ('kdtable new method NAME' writes an example)"
        )
    return declared


def _bad(path: Path, error: BaseException) -> BadPlugin:
    first = str(error).partition("\n")[0]
    bad = BadPlugin(f"plug-in {path} cannot be imported ({type(error).__name__}: {first}): mend it, and call again")
    bad.file = path
    return bad


def _joined(path: Path, source: str, declared: Iterable[Declaration]) -> tuple[tuple[str, str], ...]:
    """Register all declarations, or none."""
    order = list(KINDS)
    names: list[tuple[str, str]] = []
    try:
        for one in sorted(declared, key=lambda one: order.index(one.group)):
            own, kind = registry(one.group), KINDS[one.group]
            if one.name in own:
                raise BadRequest(
                    f"plug-in {path}: there is a {kind.noun} '{one.name}' already ({own.where(one.name)}): choose "
                    "another name"
                )
            try:
                make = _function(kind.check)(one)
            except BadRequest as error:
                raise BadRequest(f"plug-in {path}: {kind.noun} '{one.name}' {error}") from error
            own.targets[one.name] = Component(one.target, make, source, path, one.settings)
            names.append((one.group, one.name))
    except BaseException:
        for group, name in names:
            registry(group).targets.pop(name)
        raise
    return tuple(names)


def registry(group: str) -> Registry[Any]:
    """The registry of a group."""
    found: Registry[Any] = _function(KINDS[group].registry)
    return found


def _function(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
