"""Place runs in comparisons, by their recipes.

Some rows have a recipe other than their paper's shared one. Such a row is placed beside the rows that the same request
would have trained. Its batch size may be its own or the one that the user set for all rows: if the store has other rows
of both kinds, the run is placed beside both.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from kdtable.models.names import stored_base as base_name
from kdtable.numerics.names import split_precision
from kdtable.papers import own_recipe
from kdtable.papers.own import OwnRecipe
from kdtable.recipes.metrics import VALIDATED
from kdtable.recipes.recipe import Recipe
from kdtable.report.comparison import Comparison
from kdtable.report.recipe_changes import differences
from kdtable.store.records import RunRecord

Identity = Mapping[str, Any]
#: Recipes (without learning rate) of rows that use the shared recipe, to their learning rates by student.
_Rates = dict[Recipe, dict[str, dict[float, None]]]
#: :func:`kdtable.papers.own_recipe`.
_OwnRecipes = Callable[[str, str, str, str], OwnRecipe | None]


@dataclass(frozen=True, slots=True)
class Placement:
    """A comparison, and a column in it.

    Attributes:
        comparison: key of the comparison: what its runs share beside the recipe, as canonical JSON, and the shared
            recipe without learning rate.
        lr: learning rate of the column.
        own: fields in which the row's recipe differs from the shared one, in words.
    """

    comparison: tuple[str, Recipe]
    lr: float
    own: tuple[str, ...] = ()

    def new_comparison(self, run: RunRecord, rule: str) -> Comparison:
        """An empty comparison for a run, by an epoch rule; held-out images choose the epoch where there are any."""
        rest, recipe = self.comparison
        data, precision, *_ = json.loads(rest)
        shared = {key: value for key, value in recipe.identity().items() if key != "lr"}
        rule = VALIDATED if data.get(VALIDATED) else rule
        return Comparison(data, run.data, precision, shared, run.protocol.metrics, rule)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What decides a protocol's placement; ``bare`` is its recipe without learning rate."""

    rest: str
    student: str
    recipe: Recipe
    bare: Recipe
    own: OwnRecipe | None

    @classmethod
    def of(cls, run: RunRecord, identity: Identity, own_recipe: _OwnRecipes) -> "_Candidate":
        # A teacher cache changes only the last bits of some rows; their footnotes say so.
        precision, _ = split_precision(identity["precision"])
        rest = json.dumps([identity["data"], precision, identity["versions"], run.protocol.task], sort_keys=True)
        own = own_recipe(run.paper, run.row, identity["data"]["kind"], run.student)
        recipe = Recipe.from_mapping(identity["recipe"])
        return cls(rest, base_name(run.student), recipe, _bare(recipe), own)


def placements(protocols: Iterable[tuple[RunRecord, Identity]]) -> list[Sequence[Placement]]:
    """Placements of protocols, each given as a run with its identity: one, or several."""
    own = cache(own_recipe)
    given = [_Candidate.of(run, identity, own) for run, identity in protocols]
    known: dict[str, _Rates] = {}
    for one in given:
        if one.own is None:
            rates = known.setdefault(one.rest, {}).setdefault(one.bare, {})
            rates.setdefault(one.student, {})[one.recipe.lr] = None
    return [_placements(one, known.get(one.rest, {})) for one in given]


def _placements(one: _Candidate, known: _Rates) -> Sequence[Placement]:
    if one.own is None:
        return [Placement((one.rest, one.bare), one.recipe.lr)]
    usual = one.own.put_back(one.recipe)
    others = list(_beside(one, one.own, known, usual.lr)) or [usual]
    given = one.recipe.identity()
    return [
        Placement((one.rest, _bare(other)), other.lr, tuple(differences(given, other.identity()))) for other in others
    ]


def _beside(one: _Candidate, own: OwnRecipe, known: _Rates, usual: float) -> Iterator[Recipe]:
    """Shared recipes that the row's recipe fits: at its student's learning rates there, else at its usual one."""
    for bare, students in known.items():
        rates = [replace(bare, lr=lr) for lr in students.get(one.student, {})]
        fitting = [recipe for recipe in rates if own.fits(one.recipe, recipe)]
        alone = replace(bare, lr=usual)
        yield from fitting or ([alone] if own.fits(one.recipe, alone) else [])


def _bare(recipe: Recipe) -> Recipe:
    return replace(recipe, lr=0.0)
