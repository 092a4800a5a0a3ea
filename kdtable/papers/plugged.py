"""Methods and papers of plug-ins, checked as they are registered."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtable.errors import BadRequest
from kdtable.methods import METHODS
from kdtable.methods.objective import Objective
from kdtable.papers import loader
from kdtable.papers.model import row_changes
from kdtable.plugins import Declaration

if TYPE_CHECKING:
    from kdtable.methods.base import Method


def method(one: Declaration) -> "Callable[[], type[Method]]":
    """Check a method's class and its row.

    Raises:
        BadRequest: it cannot be trained, or its row does not fit it.
    """
    from kdtable.methods.contract import shortcoming

    folded = one.name.lower().replace("_", "-")
    if same := next((name for name in METHODS if name.lower().replace("_", "-") == folded), None):
        raise BadRequest(f"differs from the method '{same}' in case or '_' only: choose another name")
    if text := shortcoming(one.target):
        raise BadRequest(text)
    if one.settings:
        try:
            _check_row(one.target, row_changes(one.settings))
        except ValueError as error:
            raise BadRequest(f"has a row that cannot be used: {error}") from error
    kind: type[Method] = one.target
    return lambda: kind


def _check_row(kind: "type[Method]", row: Mapping[str, Any]) -> None:
    from kdtable.methods.contract import own_terms

    if of_papers := row.keys() - loader.OF_METHODS:
        raise ValueError(f"{min(of_papers)} belongs into a paper")
    if "terms" not in row:
        raise ValueError("it has no terms, the weights of its loss")
    terms, known = row["terms"], own_terms(kind)
    _check_terms([terms, *row.get("pair_terms", {}).values()], known)
    if stray := row.get("schedules", {}).keys() - terms.keys():
        raise ValueError(f"it has a schedule for '{min(stray)}', which is none of its terms")
    for params in (row.get("params", {}), *row.get("student_params", {}).values()):
        Objective.of(kind.hyper, terms, params)


def _check_terms(weights: Iterable[Mapping[str, float]], known: frozenset[str] | None) -> None:
    for name, weight in ((name, weight) for one in weights for name, weight in one.items()):
        if known is not None and name not in known:
            raise ValueError(f"it has the term '{name}', and the class has {', '.join(sorted(known))}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of '{name}' is {weight:g}: use a finite one of at least 0")


def paper(one: Declaration) -> Callable[[], Path]:
    """Check a paper's file.

    Raises:
        BadRequest: it is missing, is no paper, or has a table that another paper has.
    """
    path: Path = one.target
    if not path.is_file():
        raise BadRequest(f"is to be read from {path}, and there is no such file")
    found = loader.parsed(one.name, path)
    taken = {table: other for other in loader.names() for table in loader.load(other).tables}
    if double := next((table for table in found.tables if table in taken or table == "all"), None):
        whose = f"paper {taken[double]} has too" if double in taken else "means all tables"
        raise BadRequest(f"has a table '{double}', which {whose}: rename it")
    return lambda: path
