"""The recipe of a row for a student, with the user's changes."""

from dataclasses import replace
from math import inf

from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest
from kdtable.papers import Paper, Row
from kdtable.planning.overrides import Overrides
from kdtable.planning.recipe_checks import checked
from kdtable.planning.request import Request
from kdtable.recipes.recipe import Recipe


def recipe_of(paper: Paper, row: Row, student: str, request: Request, data: DataSpec, overrides: Overrides) -> Recipe:
    """The recipe that a student is trained by.

    Raises:
        BadRequest: a change that trains nothing, contradicts another, or changes nothing.
    """
    changes = request.changes
    recipe = replace(paper.recipe_for(student), **row.recipe)
    if changes.batch_size is not None:
        recipe = replace(recipe, batch_size=changes.batch_size)
    recipe = _of_length(recipe, request, data)
    if changes.lr is not None:
        if not 0 < changes.lr < inf:
            raise BadRequest(f"a learning rate of {changes.lr} trains nothing: use a positive one")
        recipe = replace(recipe, lr=changes.lr)
    recipe = overrides.recipe(recipe, ("crop_padding", "crop_fill") if data.uncropped else ())
    if data.uncropped:
        recipe = recipe.for_image_folders()
    return checked(in_epochs(recipe, request, data), overrides)


def in_epochs(recipe: Recipe, request: Request, data: DataSpec) -> Recipe:
    """The recipe with the number of epochs that its steps take, if it counts in steps."""
    return recipe.in_steps(_steps(recipe, request, data)) if recipe.iterations else recipe


def _of_length(recipe: Recipe, request: Request, data: DataSpec) -> Recipe:
    epochs, iterations = request.changes.epochs, request.changes.iterations
    if epochs is not None and iterations is not None:
        raise BadRequest("--epochs and --iterations both say how long to train: leave one out")
    if epochs is not None and epochs < 1:
        raise BadRequest(f"--epochs {epochs} trains nothing: use at least 1")
    if iterations is not None and iterations < 1:
        raise BadRequest(f"--iterations {iterations} trains nothing: use at least 1")
    if iterations is not None:
        return recipe.over(iterations, _steps(recipe, request, data))
    if epochs is not None:
        steps = _steps(recipe, request, data) if recipe.iterations else 1
        return recipe.over(epochs * steps, steps) if recipe.iterations else recipe.scaled(epochs)
    return recipe


def _steps(recipe: Recipe, request: Request, data: DataSpec) -> int:
    """Number of steps of an epoch."""
    from kdtable.data.stream import slices

    return max(1, len(slices(data.train_count, max(1, recipe.batch_size), request.sharding.parts)))
