"""Where the recipe of runs is not that of a paper."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.papers import DEFAULT_PAPER, Paper
from kdtable.recipes.recipe import Recipe
from kdtable.store.records import RunRecord

Identity = Mapping[str, Any]
#: A student's canonical name and its learning rate, for which a paper may have a value of its own.
Rate = tuple[str, float]


def changes_of(recipe: Identity, rates: Iterable[Rate], paper: Paper) -> list[str]:
    """Fields in which a recipe is not the paper's, such as ``epochs 24 for 240``; empty if it is the same.

    Args:
        recipe: its identity; the learning rate in it is not looked at.
        rates: of the students that were trained by it.
        paper: whose recipe it should be.
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
    """Fields in which a run's recipe is not that of the paper it was asked for under, in whichever reading.

    Args:
        run: as the store has it.
        identity: of it; what in its recipe is the run's row's own in that paper is no departure.
    """
    kind = identity["data"]["kind"]
    try:
        paper = papers.load(run.paper).on(kind)
    except BadRequest:
        return [f"paper {run.paper} is not known here"]
    shared = papers.shared_recipe(paper.name, run.row, identity["recipe"], kind, run.student)
    rates = [(run.student, float(shared["lr"]))]
    readings = [paper, *(paper.read_as(reading) for reading in paper.readings)]
    return min((changes_of(shared, rates, reading) for reading in readings), key=len)


def differences(recipe: Identity, other: Identity) -> list[str]:
    """Fields in which one stored recipe is not another, such as ``epochs 24 for 240``."""
    whole, given = (Recipe.from_mapping(r).full_identity() for r in (other, recipe))
    return [f"{key} {_shown(given[key])} for {_shown(whole[key])}" for key in sorted(whole) if given[key] != whole[key]]


def nearest(recipe: Identity, rates: Iterable[Rate], kind: str, asked: Collection[str]) -> tuple[Paper, list[str]]:
    """The paper whose recipe on a kind of data set differs in the fewest fields, and in which it does.

    Args:
        recipe: its identity.
        rates: of the students that were trained by it.
        kind: of the data set.
        asked: names of the papers that are looked at; where none of them is known here, all are.
    """
    given = tuple(rates)
    names = [name for name in papers.names() if name in asked] or papers.names()
    ordered = sorted(names, key=lambda name: (name != DEFAULT_PAPER, name))
    found = [(paper, changes_of(recipe, given, paper)) for paper in (papers.load(name).on(kind) for name in ordered)]
    return min(found, key=lambda pair: len(pair[1]))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
