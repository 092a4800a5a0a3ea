"""Rows with a recipe of their own: how it differs from the recipe of the paper's other rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from kdtable.recipes.recipe import Recipe

_FIELDS: Final = tuple(field.name for field in fields(Recipe))


@dataclass(frozen=True, slots=True)
class OwnRecipe:
    """The recipe changes of a row.

    Attributes:
        shared: recipe of the paper's other rows, for the row's student.
        changes: fields that the row changes.
    """

    shared: Recipe
    changes: Mapping[str, Any]

    def put_back(self, recipe: Recipe) -> Recipe:
        """Undo the row's own changes in ``recipe``; keep the user's overrides."""
        own = replace(self.shared, **self.changes)
        shared = self.shared
        if recipe.epochs != own.epochs:
            own, shared = own.scaled(recipe.epochs), shared.scaled(recipe.epochs)
        # All fields: milestones differ too if the row changes the epochs.
        same = [name for name in _FIELDS if getattr(recipe, name) == getattr(own, name)]
        return replace(recipe, **{name: getattr(shared, name) for name in same})

    def fits(self, recipe: Recipe, others: Recipe) -> bool:
        """Whether one request can train the row by ``recipe`` and the paper's other rows by ``others``.

        Fields that the request overrides are equal in both. The others may have the row's own values.
        """
        return any(
            all(getattr(recipe, name) in (getattr(others, name), getattr(found, name)) for name in _FIELDS)
            for found in self._beside(others)
        )

    def _beside(self, others: Recipe) -> Iterator[Recipe]:
        """Recipes of the row when the others have ``others``: with its epochs scaled to theirs, and unscaled."""
        own = replace(self.shared, **self.changes)
        pairs = [(self.shared.scaled(others.epochs), own.scaled(others.epochs))]
        if others.epochs == self.shared.epochs:
            pairs.append((self.shared, own))
        for shared, usual in pairs:
            values = {name: getattr(others, name) for name in _FIELDS}
            overridden = {name: value for name, value in values.items() if value != getattr(shared, name)}
            yield replace(usual, **overridden)
