"""Recipe changes: fields in which the recipe of runs differs from a paper's."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.papers import DEFAULT_PAPER, Paper
from kdtable.papers.own import OwnRecipe
from kdtable.recipes.recipe import Recipe
from kdtable.store.records import RunRecord

Identity = Mapping[str, Any]
#: A student's canonical name and its learning rate, which a paper may set for each student.
Rate = tuple[str, float]


def changes_of(recipe: Identity, rates: Iterable[Rate], paper: Paper) -> list[str]:
    """Fields in which a recipe differs from the paper's, such as ``epochs 24 for 240``; empty if none do.

    Args:
        recipe: its identity; its learning rate is ignored.
        rates: learning rates of the students trained by it.
        paper: the paper to compare with.
    """
    fields: dict[str, None] = {}
    lrs: dict[str, None] = {}
    for student, lr in rates:
        own = paper.recipe_for(student).identity()
        fields |= dict.fromkeys(differences({**recipe, "lr": None}, {**own, "lr": None}))
        if lr != own["lr"]:
            lrs[f"lr of {student} {lr:g} for {own['lr']:g}"] = None
    return [*fields, *lrs]


def own_changes(run: RunRecord, identity: Identity) -> list[str]:
    """Fields in which a run's recipe differs from its paper's, in the reading with the fewest changes.

    Args:
        run: the stored run.
        identity: its identity. Fields that the paper sets for the row itself are not changes.
    """
    kind = identity["data"]["kind"]
    own = _own(papers.load, run.paper, run.row, kind, run.student)
    recipe = identity["recipe"] if own is None else own.put_back(Recipe.from_mapping(identity["recipe"])).identity()
    return list(_fewest(papers.load, run.paper, kind, run.student, json.dumps(recipe)))


# Looked up once for all runs alike: very many differ in their methods and seeds alone.
@cache
def _own(load: Callable[[str], Paper], paper: str, row: str, kind: str, student: str) -> OwnRecipe | None:
    return papers.own_recipe(paper, row, kind, student)


@cache
def _fewest(load: Callable[[str], Paper], name: str, kind: str, student: str, recipe: str) -> tuple[str, ...]:
    """The changes of a shared recipe, given as JSON."""
    try:
        readings = _readings(load, name, kind)
    except BadRequest:
        return (f"paper {name} is not known here",)
    shared = json.loads(recipe)
    rates = [(student, float(shared["lr"]))]
    fewest = min((changes_of(shared, rates, reading) for reading in readings), key=len)
    return tuple(fewest)


@cache
def _readings(load: Callable[[str], Paper], name: str, kind: str) -> tuple[Paper, ...]:
    """A paper on a kind of data set, in all its readings."""
    paper = load(name).on(kind)
    return paper, *(paper.read_as(reading) for reading in paper.readings)


def differences(recipe: Identity, other: Identity) -> list[str]:
    """Fields in which two stored recipes differ, such as ``epochs 24 for 240``."""
    whole, given = (Recipe.from_mapping(r).full_identity() for r in (other, recipe))
    return [f"{key} {_shown(given[key])} for {_shown(whole[key])}" for key in sorted(whole) if given[key] != whole[key]]


def nearest(recipe: Identity, rates: Iterable[Rate], kind: str, requested: Collection[str]) -> tuple[Paper, list[str]]:
    """The paper with the fewest recipe changes on a kind of data set, and these changes.

    Args:
        recipe: its identity.
        rates: learning rates of the students trained by it.
        kind: kind of data set.
        requested: names of the papers to consider; all papers if none of these is known.
    """
    given = tuple(rates)
    names = [name for name in papers.names() if name in requested] or papers.names()
    ordered = sorted(names, key=lambda name: (name != DEFAULT_PAPER, name))
    found = [(paper, changes_of(recipe, given, paper)) for paper in (papers.load(name).on(kind) for name in ordered)]
    return min(found, key=lambda pair: len(pair[1]))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
