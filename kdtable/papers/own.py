"""A row whose recipe is not that of its paper's other rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from kdtable.recipes.recipe import Recipe

_FIELDS: Final = tuple(field.name for field in fields(Recipe))


@dataclass(frozen=True, slots=True)
class OwnRecipe:
    """What a row changes.

    Attributes:
        shared: the recipe of the paper's other rows for the row's student.
        changes: fields of it that are the row's own.
    """

    shared: Recipe
    changes: Mapping[str, Any]

    def put_back(self, recipe: Recipe) -> Recipe:
        """The row's ``recipe`` with what is its own put back to what other rows have; what a user asked for stays."""
        own = replace(self.shared, **self.changes)
        shared = self.shared
        if recipe.epochs != own.epochs:
            own, shared = own.scaled(recipe.epochs), shared.scaled(recipe.epochs)
        # All fields, because the milestones that other rows have move with epochs that are the row's own.
        same = [name for name in _FIELDS if getattr(recipe, name) == getattr(own, name)]
        return replace(recipe, **{name: getattr(shared, name) for name in same})

    def fits(self, recipe: Recipe, others: Recipe) -> bool:
        """Whether one request can give the row ``recipe`` and the paper's other rows ``others``.

        What the request changed is equal in both; elsewhere the row may have what is its own.
        """
        return any(
            all(getattr(recipe, name) in (getattr(others, name), getattr(found, name)) for name in _FIELDS)
            for found in self._beside(others)
        )

    def _beside(self, others: Recipe) -> Iterator[Recipe]:
        """What the row can have where the others have ``others``: at its own length, and at theirs."""
        own = replace(self.shared, **self.changes)
        pairs = [(self.shared.scaled(others.epochs), own.scaled(others.epochs))]
        if others.epochs == self.shared.epochs:
            pairs.append((self.shared, own))
        for shared, usual in pairs:
            values = {name: getattr(others, name) for name in _FIELDS}
            asked = {name: value for name, value in values.items() if value != getattr(shared, name)}
            yield replace(usual, **asked)
