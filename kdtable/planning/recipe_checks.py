"""Checks of a recipe that the user has changed."""

from kdtable.errors import BadRequest
from kdtable.planning.overrides import Overrides
from kdtable.recipes.recipe import WEAK_STRONG, Recipe


def checked(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with fields that nothing reads at their usual values.

    Raises:
        BadRequest: the user changed such a field, or fields contradict each other.
    """
    if vain := [name for name in recipe.idle() if name in overrides]:
        raise BadRequest(f"--set {vain[0]} changes nothing without {recipe.idle()[vain[0]]}: leave it out, or add that")
    if recipe.nesterov and recipe.momentum == 0:
        raise BadRequest("nesterov needs a positive momentum")
    if recipe.lr_min > recipe.lr:
        raise BadRequest(f"lr_min {recipe.lr_min:g} is above the learning rate {recipe.lr:g}, which falls to it")
    return recipe.settled()


def check_cache(recipe: Recipe, cache: str) -> None:
    """Refuse a teacher cache where an image has endlessly many views."""
    if cache == "off" or not (recipe.mixes or recipe.randaugment or recipe.views):
        return
    if recipe.views:
        raise BadRequest(
            "two views of an image are new in every epoch, so a teacher's outputs for them cannot be kept: leave out "
            "--teacher-cache"
        )
    field = "randaugment" if recipe.randaugment else "mixup" if recipe.mixup else "cutmix"
    raise BadRequest(
        f"{field} changes images in endlessly many ways, so a teacher's outputs for them cannot be kept: leave out "
        f"--teacher-cache or {field}"
    )


def check_views(recipe: Recipe, task: str) -> None:
    """Refuse two views where nothing takes them, and training without labels without them."""
    labelled = recipe.views == WEAK_STRONG
    if task == "self-supervised" and (labelled or not recipe.views):
        raise BadRequest(
            "training without labels takes two views of an image of its own kind: use --set views=moco-v2 or moco-cifar"
        )
    if task != "self-supervised" and recipe.views and not labelled:
        raise BadRequest(f"views={recipe.views} is for training without labels, as --paper moco-cifar: leave it out")
    if labelled:
        _check_weak_and_strong(recipe, task)


def _check_weak_and_strong(recipe: Recipe, task: str) -> None:
    """Refuse weak and strong views of detectors, without RandAugment, and mixed."""
    if task != "classification":
        raise BadRequest(f"views={WEAK_STRONG} is for classification, not for {task}: leave it out")
    if not recipe.randaugment:
        raise BadRequest(
            f"views={WEAK_STRONG} makes the strong view by RandAugment: add --set randaugment=2, or leave views out"
        )
    if recipe.mixes:
        field = "mixup" if recipe.mixup else "cutmix"
        raise BadRequest(f"views={WEAK_STRONG} mixes no images: leave it or {field} out")
