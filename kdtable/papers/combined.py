"""Rows of several methods at once, ``at+crd``, made from the rows of each."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from kdtable.papers.model import Row

#: Terms and hyper-parameters that belong to no method: one of each, however many rows state it.
SHARED: Final = ("ce", "detector", "kd", "kd_temperature", "kd_standardise")


def combined_row(name: str, rows: Mapping[str, Row], kd: Row | None = None) -> Row:
    """The row of several methods.

    Each keeps its own terms with their weights and schedules, weights and hyper-parameters by pair, and early stages.
    Cross-entropy has weight 1, or that of a row which weighs it otherwise (of several, the first). Hyper-parameters go
    by ``METHOD.NAME``; so do terms and stages that two methods name alike. The recipe is the paper's, unless all rows
    have the same changes of it.

    Args:
        name: of the row.
        rows: each method's row, by the method.
        kd: the KD row, whose weights and temperature ``X+Y+kd`` has.
    """
    own, stages = _clashing(row.terms for row in rows.values()), _clashing(row.stages for row in rows.values())
    shared = _shared_terms(rows.values())
    terms = shared | {term: weight for term, weight in _joined(rows, "terms", own).items() if term not in shared}
    params = _joined(rows, "params", None)
    if kd is not None:
        terms = {**kd.terms, **{term: weight for term, weight in terms.items() if term != "ce"}}
        params = {**kd.params, **params}
    recipes = [dict(row.recipe) for row in rows.values()]
    return Row(
        name,
        terms,
        params,
        stages=_joined(rows, "stages", stages),
        student_params=_by_pattern(rows, "student_params", None),
        recipe=recipes[0] if all(recipe == recipes[0] for recipe in recipes) else {},
        schedules=_joined(rows, "schedules", own),
        pretrained=any(row.pretrained for row in rows.values()),
        pair_terms=_by_pattern(rows, "pair_terms", own),
        test_loss=_test_loss([*rows.values(), *([kd] if kd else [])]),
        task=next(iter(rows.values())).task,
    )


def with_kd(own: Row, kd: Row, name: str) -> Row:
    """A row with a KD term beside its own terms."""
    terms = {**kd.terms, **{term: weight for term, weight in own.terms.items() if term != "ce"}}
    measured = kd.test_loss if own.test_loss is None else own.test_loss
    return replace(own, name=name, terms=terms, params={**kd.params, **own.params}, test_loss=measured)


def standardised(row: Row, name: str) -> Row:
    """The row with standardised logits, in the KD term if it has one, else in the method's own."""
    field_name = "kd_standardise" if "kd" in row.terms else "standardise"
    return replace(row.with_params({field_name: True}), name=name)


def _shared_terms(rows: Iterable[Row]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        for term, weight in row.terms.items():
            if term in SHARED and (term not in found or (term == "ce" and found[term] == 1)):
                found[term] = weight
    return {term: found[term] for term in SHARED if term in found}


def _clashing(names: Iterable[Iterable[str]]) -> frozenset[str]:
    """The names that several methods use."""
    every = [name for own in names for name in own]
    return frozenset(name for name in every if name not in SHARED and every.count(name) > 1)


def _name(method: str, name: str, clashing: frozenset[str] | None) -> str:
    """Our name for a method's: qualified if it is one of ``clashing`` (``None``: any that is not shared)."""
    qualified = name not in SHARED if clashing is None else name in clashing
    return f"{method}.{name}" if qualified else name


def _joined(rows: Mapping[str, Row], field: str, clashing: frozenset[str] | None) -> dict[str, Any]:
    """The values of a field of all rows; of a shared one, the first row's."""
    found: dict[str, Any] = {}
    for method, row in rows.items():
        for name, value in getattr(row, field).items():
            found.setdefault(_name(method, name, clashing), value)
    return found


def _by_pattern(rows: Mapping[str, Row], field: str, clashing: frozenset[str] | None) -> dict[str, dict[str, Any]]:
    """The values of a field by pattern. Later ones win, so a pattern of several rows stands where the last has it."""
    found: dict[str, dict[str, Any]] = {}
    for method, row in rows.items():
        for pattern, values in getattr(row, field).items():
            own = {_name(method, name, clashing): value for name, value in values.items()}
            found[pattern] = found.pop(pattern, {}) | own
    return found


def _test_loss(rows: Iterable[Row]) -> bool | None:
    """Whether to measure the loss on test images: where all rows say so; ``None`` if none says anything."""
    stated = [row.test_loss for row in rows]
    return None if all(one is None for one in stated) else all(stated)
