"""The code that a run uses, file by file, and where it differs from the code that made a stored result."""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from kdtable.errors import counted, several
from kdtable.methods import target_of
from kdtable.models.names import KINDS, NETWORKS, Entry
from kdtable.provenance import source_files, source_hash
from kdtable.store.records import single_teachers
from kdtable.tasks import DEFAULT, TASKS

#: Folder of the package.
_ROOT: Final = Path(__file__).parents[1]

#: What every run uses: a step with its learning rate, its batches, and how networks are built.
STEP: Final = (
    "kdtable.training.member",
    "kdtable.training.build",
    "kdtable.data.stream",
    "kdtable.recipes.recipe",
    "kdtable.recipes.schedule",
)

#: Packages in which imports are followed. Elsewhere a file says how things are read, planned, stored or shown.
FOLLOWED: Final = ("kdtable.methods.", "kdtable.models.", "kdtable.tasks.", "kdtable.training.")

#: Registries: a new entry changes no run.
_REGISTRIES: Final = ("kdtable.models.names",)

#: Every method's file imports the terms that all can have, and these the one with soft targets, which few runs have.
_BASE_TERMS: Final = "kdtable.methods.base_terms"
_SOFT_TARGETS: Final = "kdtable.methods.soft_targets"

#: Adds the terms of several methods.
_COMBINED: Final = "kdtable.methods.combined"

#: In place of a file, where the files of the code that made a result are not known.
UNKNOWN: Final = ""


def used_files(identity: Mapping[str, Any]) -> frozenset[str]:
    """The files of this package that a run's numbers depend on, such as ``kdtable/methods/kd.py``.

    These are its method's, its networks' and its task's with what they import of each other, and the training step's.
    Registries, papers and whatever plans, stores and reports are none of them; a plug-in's files are not either.

    Args:
        identity: of the run, as stored.
    """
    teachers = (*single_teachers(identity.get("teacher")), *single_teachers(identity.get("start")))
    networks = tuple(ref["network"] for ref in (identity["student"], *teachers))
    soft = any(name == "kd" for name, _ in identity["terms"])
    methods = tuple(identity["method"].get("parts", [identity["method"]["name"]]))
    return _used(methods, networks, identity.get("task", DEFAULT), soft)


def changed_files(
    identity: Mapping[str, Any], made_by: Iterable[str], known: Mapping[str, Mapping[str, str]]
) -> frozenset[str]:
    """The files that a run uses and that differ now from those that a result of it was made by.

    Args:
        identity: of the run, as stored.
        made_by: source hashes of the code that made the result.
        known: the files of each code and their hashes; `UNKNOWN` stands for those of a code that it lacks.
    """
    others = [known.get(source) for source in made_by if source != source_hash()]
    now = source_files()
    found = [
        [UNKNOWN] if then is None else [file for file in used_files(identity) if then.get(file) != now.get(file)]
        for then in others
    ]
    return frozenset(file for files in found for file in files)


def other_code(files: Iterable[str]) -> str:
    """Files that :func:`changed_files` found, in words: ``another kdtable/methods/kd.py``."""
    named = sorted(file for file in files if file != UNKNOWN)
    return f"another {several(named)}" if named else "code whose files are not recorded"


def made_otherwise(runs: int, rows: Iterable[str], files: Iterable[str], unfinished: int = 0) -> str:
    """``3 stored runs of kd were made by another kdtable/methods/kd.py``."""
    of = several(list(dict.fromkeys(rows)), most=5)
    part = f" ({unfinished} of them unfinished)" if unfinished else ""
    return f"{counted(runs, 'stored run')} of {of}{part} {'was' if runs == 1 else 'were'} made by {other_code(files)}"


@lru_cache
def _used(methods: tuple[str, ...], networks: tuple[str, ...], task: str, soft: bool) -> frozenset[str]:
    targets = (*(target_of(method, task) for method in methods), TASKS.targets.get(task))
    combined = [_COMBINED] if len(methods) > 1 else []
    left = [*STEP, *(str(target).partition(":")[0] for target in targets if isinstance(target, str))]
    return _with_imports([*left, *combined, *(module for network in networks for module in _modules(network))], soft)


def network_code(network: str) -> str:
    """Hash of the files of a network's code."""
    now = source_files()
    text = "\n".join(f"{file} {now[file]}" for file in sorted(_with_imports(_modules(network), soft=False)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_imports(modules: Iterable[str], soft: bool) -> frozenset[str]:
    """The files of modules, and of those that they import in the packages where imports are followed."""
    left = list(modules)
    found: set[str] = set()
    while left:
        module = left.pop()
        file = _file(module)
        if file is None or file in found or module in _REGISTRIES:
            continue
        found.add(file)
        every = module != _BASE_TERMS or soft
        left += [name for name in _imports(file) if name.startswith(FOLLOWED) and (every or name != _SOFT_TARGETS)]
    return frozenset(found)


def _modules(network: str) -> Iterator[str]:
    """The modules of a network: its own, and that of its extra classifiers."""
    base, _, kind = network.partition("+")
    if isinstance(entry := NETWORKS.targets.get(base), Entry):
        yield entry.module
    if kind in KINDS:
        yield KINDS[kind].module


def _file(module: str) -> str | None:
    """The file of a module of this package as :func:`source_files` names it; ``None`` for packages and for others."""
    file = f"{module.replace('.', '/')}.py"
    return file if file in source_files() else None


@lru_cache
def _imports(file: str) -> tuple[str, ...]:
    """The modules that a file imports, anywhere but for types alone."""
    names: list[str] = []
    left: list[ast.AST] = [ast.parse((_ROOT.parent / file).read_bytes())]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        left += ast.iter_child_nodes(node)
    return tuple(names)
