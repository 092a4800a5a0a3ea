"""Requests and objectives from flat settings."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from kdtable import methods
from kdtable.methods.base import Method
from kdtable.methods.objective import Objective
from kdtable.planning.request import Request


def asked(request: Request, **changes: Any) -> Request:
    """A request with changes, those of its parts by their own names; ``data`` is the name of a data set."""
    if "data" in changes:
        changes["name"] = changes.pop("data")
    for part in ("data", "changes", "sharding"):
        value = getattr(request, part)
        own = {field.name: changes.pop(field.name) for field in fields(value) if field.name in changes}
        request = replace(request, **{part: replace(value, **own)})
    return replace(request, **changes)


def aim(
    method: str | type[Method], terms: Mapping[str, float], params: Mapping[str, Any] | None = None, **others: Any
) -> Objective:
    """What a method optimises, named by a row or by its class; refuses hyper-parameters that it cannot use."""
    kind = methods.get(method) if isinstance(method, str) else method
    return Objective.of(kind.hyper, terms, params or {}, **others)
