"""What a plug-in's file writes to offer something: ``method``, ``network``, ``dataset``, ``paper``.

Where kdtable does not load the file, as when a test imports it, these only remember what was declared.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from kdtable.errors import BadRequest

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])

#: Names that can stand in lists, pairs and cells: no commas, colons, blanks or plus signs.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Declaration:
    """One thing that a module offers.

    Attributes:
        group: the registry that it joins, such as ``kdtable.methods``.
        name: its name there.
        target: the class, function or path.
        settings: what was said about it; of a method the fields of its row, empty if it has none.
    """

    group: str
    name: str
    target: Any
    settings: Mapping[str, Any] = field(default_factory=dict)


#: What was declared, by the name of the module that did it.
_DECLARED: Final[dict[str, list[Declaration]]] = {}


def declared_by(module: str) -> list[Declaration]:
    """What a module declared."""
    return list(_DECLARED.get(module, ()))


def forget_declared(module: str) -> None:
    """Forget what a module declared, before it is executed again."""
    _DECLARED.pop(module, None)


def settings_of(group: str, name: str, target: Any) -> Mapping[str, Any]:
    """What the module of ``target`` declared about it under a name; empty if nothing."""
    for one in _DECLARED.get(getattr(target, "__module__", ""), ()):
        if (one.group, one.name) == (group, name) and one.target is target:
            return one.settings
    return {}


def method(
    name: str,
    *,
    terms: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    stages: Mapping[str, int] | None = None,
    schedules: Mapping[str, Mapping[str, Any]] | None = None,
    student_params: Mapping[str, Mapping[str, Any]] | None = None,
    pair_terms: Mapping[str, Mapping[str, float]] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Offer a method, with its row: the weights and settings with which it joins the tables of every paper.

        @plugins.method("my-dkd", terms={"ce": 1.0, "my-dkd": 1.0}, schedules={"my-dkd": {"warmup": 20}})
        class MyDKD(Method): ...

    A row can stand in a TOML file beside instead: ``[rows.my-dkd]`` in ``my_dkd.toml`` for ``my_dkd.py``. A method
    without either has a row only where a paper gives it one.

    Args:
        name: as ``--methods`` takes it.
        terms: loss weights in the order of addition, of the task's terms (``ce``, ``kd``) and the method's own.
        params: hyper-parameters that differ from the defaults of the method's dataclass.
        stages: epochs of the stages before the main one, at the paper's full length.
        schedules: term to the schedule of its weight, at the paper's full length (``{"warmup": 20}``, ``{"ramp": 20}``,
            ``{"steps": [60, 160], "factor": 0.9}``, ``{"off_until": 30}``).
        student_params: hyper-parameters for students that match a pattern, or for pairs (``"resnet56:*"``).
        pair_terms: loss weights for pairs that match a pattern.

    Raises:
        BadRequest: a name that cannot be written in a list, or settings without ``terms``.
    """
    given = {
        "terms": terms,
        "params": params,
        "stages": stages,
        "schedules": schedules,
        "student_params": student_params,
        "pair_terms": pair_terms,
    }
    stated: Mapping[str, Any] = {key: value for key, value in given.items() if value is not None}
    if stated and terms is None:
        raise BadRequest(f"the method '{name}' has {min(stated)} but no terms: give the weights of its loss")
    module, file = _caller()
    row = stated or _row_beside(file, name)

    def declared(cls: type[T]) -> type[T]:
        _declare(module, Declaration("kdtable.methods", name, cls, row))
        return cls

    return declared


def network(name: str, *, sized: bool = False, version: int = 1, **args: Any) -> Callable[[C], C]:
    """Offer a network: a class that extends ``kdtable.models.network.Network``, called with ``num_classes``.

        @plugins.network("tiny16", width=16)
        @plugins.network("tiny32", width=32)
        class Tiny(Network): ...

    Args:
        name: as ``--pairs`` takes it.
        sized: whether its parameters depend on the images' size; the class then gets ``image_size`` too.
        version: part of a run's identity, beside the hash of the file.
        args: further arguments of the class.

    Raises:
        BadRequest: a name that cannot be written in a list.
    """
    module, _ = _caller()

    def declared(cls: C) -> C:
        _declare(
            module,
            Declaration("kdtable.models", name, cls, {"sized": sized, "version": version, "args": args}),
        )
        return cls

    return declared


def dataset(name: str, *, flip: bool = True) -> Callable[[C], C]:
    """Offer a data set: a function that returns arrays by name, as ``npz:FILE`` holds them.

    Or it returns two map-style data sets, ``(train, test)``, whose items are ``(image, label)``, as torchvision's.

        @plugins.dataset("rings", flip=False)
        def rings() -> dict[str, np.ndarray]:
            return {"train_images": ..., "train_labels": ..., "test_images": ..., "test_labels": ...}

    It is called when the data set is first asked for, and must return the same arrays each time: their contents
    identify the runs on it.

    Args:
        name: as ``--data`` takes it.
        flip: whether training images may be mirrored.

    Raises:
        BadRequest: a name that cannot be written in a list.
    """
    module, _ = _caller()

    def declared(function: C) -> C:
        _declare(module, Declaration("kdtable.datasets", name, function, {"flip": flip}))
        return function

    return declared


def paper(file: str | Path, name: str | None = None) -> None:
    """Offer a paper: a TOML file, named from the plug-in's folder. Its name is by default the file's, without ending.

    plugins.paper("mine.toml")

    Raises:
        BadRequest: a name that cannot be written in a list.
    """
    module, beside = _caller()
    path = beside.parent / Path(file).expanduser()
    _declare(module, Declaration("kdtable.papers", path.stem if name is None else name, path))


def check_name(name: str) -> None:
    """Raise `BadRequest` for a name that cannot stand in a list, a pair or a cell."""
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"'{name}' cannot be a name: use letters, digits, '-', '_' and '.', and begin with a letter or a digit"
        )


def _declare(module: str, declaration: Declaration) -> None:
    check_name(declaration.name)
    _DECLARED.setdefault(module, []).append(declaration)


def _caller() -> tuple[str, Path]:
    """Name and file of the module that calls a function of this one."""
    scope = sys._getframe(2).f_globals
    return str(scope.get("__name__", "")), Path(scope.get("__file__") or "notebook.py")


def _row_beside(file: Path, name: str) -> Mapping[str, Any]:
    beside = file.with_suffix(".toml")
    if not beside.is_file():
        return {}
    try:
        rows = tomllib.loads(beside.read_text(encoding="utf-8")).get("rows", {})
    except ValueError as error:
        raise BadRequest(f"{beside} cannot be read: {error}") from error
    row: Mapping[str, Any] = rows.get(name, {})
    return row
