"""Small detection batches and networks for tests."""

from dataclasses import replace

import torch

from kdtable.data.detection.sets import DetectionSet, load
from kdtable.data.spec import BUILT_IN
from kdtable.models.detection.batch import DetectionBatch, together
from kdtable.numerics.precision import Precision
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.detection import Detection

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=4, lr=0.004, milestones=(), optimizer="adamw", weight_decay=1e-4, crop_padding=0)


def shapes(train: int = 12, test: int = 8) -> DetectionSet:
    return load(replace(BUILT_IN["shapes"], train_count=train, test_count=test))


def detection(images: DetectionSet | None = None, seed: int = 1, recipe: Recipe = RECIPE) -> Detection:
    return Detection(images or shapes(), recipe, seed, Precision("fp32", CPU))


def two_images() -> DetectionBatch:
    """One image with a box of class 1, and a lower one without any."""
    draw = torch.Generator().manual_seed(3)
    sizes = (64, 64), (50, 64)
    images = [torch.rand(3, *size, generator=draw) for size in sizes]
    return DetectionBatch(
        together(images, sizes),
        sizes,
        sizes,
        (torch.tensor([[4.0, 4.0, 30.0, 30.0]]), torch.zeros(0, 4)),
        (torch.tensor([1]), torch.zeros(0, dtype=torch.int64)),
        torch.arange(2),
        1,
        torch.tensor([5, 7]),
    )
