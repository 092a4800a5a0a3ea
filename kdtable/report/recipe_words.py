"""A recipe in words, for captions."""

from collections.abc import Iterator

from kdtable.errors import counted
from kdtable.recipes.recipe import WEAK_STRONG, Recipe


def optimisation(recipe: Recipe, rates: str) -> Iterator[str]:
    """Optimiser, learning rates (in words, may be empty), schedule and weight decay."""
    name = {"sgd": "SGD", "adamw": "AdamW"}[recipe.optimizer]
    yield f"{name}{f' lr {rates}' if rates else ''}{_schedule(recipe)}"
    if recipe.warmup_epochs:
        yield f"warm-up over {counted(recipe.warmup_epochs, 'epoch')}"
    if recipe.warmup_iterations:
        yield f"warm-up over {counted(recipe.warmup_iterations, 'step')}"
    if recipe.optimizer == "sgd":
        yield f"momentum {recipe.momentum:g}"
        if recipe.nesterov:
            yield "Nesterov"
    yield f"weight decay {recipe.weight_decay:g}"
    if recipe.clip:
        yield f"gradients clipped at norm {recipe.clip:g}"


def additions(recipe: Recipe) -> Iterator[str]:
    """What the recipe has beside crops, in the order of computation."""
    labelled = recipe.views == WEAK_STRONG
    if recipe.views and not labelled:
        yield f"two views of {recipe.views}"
    if recipe.randaugment:
        changed = f"RandAugment ({recipe.randaugment} x magnitude {recipe.randaugment_magnitude})"
        yield f"two views of each image, one by {changed}" if labelled else changed
    mixed = {"MixUp": recipe.mixup, "CutMix": recipe.cutmix}
    if names := [f"{name} {alpha:g}" for name, alpha in mixed.items() if alpha]:
        yield " or ".join(names)
    if recipe.label_smoothing:
        yield f"label smoothing {recipe.label_smoothing:g}"
    if recipe.ema:
        yield f"measured is the moving average of decay {recipe.ema:g}"


def _schedule(recipe: Recipe) -> str:
    if recipe.schedule in ("cosine", "whole-cosine"):
        return f" on a cosine to {recipe.lr_min:g}"
    if recipe.schedule == "linear":
        return f" linearly to {recipe.lr_min:g}"
    drops = ", ".join(map(str, recipe.milestones))
    unit = "steps" if recipe.iterations else "epochs"
    return f" x {recipe.lr_factor:g} after {unit} {drops}" if drops else ""
