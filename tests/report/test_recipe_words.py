"""A recipe in a caption."""

from dataclasses import replace

import pytest

from kdtable.recipes.recipe import Recipe
from kdtable.report.recipe_words import additions, optimisation

CRD = Recipe(epochs=240, batch_size=64, lr=0.05, milestones=(150, 180, 210))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "SGD lr 0.05 x 0.1 after epochs 150, 180, 210, momentum 0.9, weight decay 0.0005"),
        ({"nesterov": True, "milestones": ()}, "SGD lr 0.05, momentum 0.9, Nesterov, weight decay 0.0005"),
        ({"schedule": "cosine"}, "SGD lr 0.05 on a cosine to 0, momentum 0.9, weight decay 0.0005"),
        (
            {"optimizer": "adamw", "schedule": "linear", "lr_min": 1e-5, "warmup_epochs": 1},
            "AdamW lr 0.05 linearly to 1e-05, warm-up over 1 epoch, weight decay 0.0005",
        ),
    ],
)
def test_optimisation(changed: dict[str, object], words: str) -> None:
    assert ", ".join(optimisation(replace(CRD, **changed), "0.05")) == words  # type: ignore[arg-type]


def test_without_a_column_there_is_no_rate() -> None:
    assert next(optimisation(replace(CRD, milestones=()), "")) == "SGD"


def test_additions() -> None:
    assert list(additions(CRD)) == []
    recipe = replace(CRD, randaugment=2, mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema=0.999)
    assert list(additions(recipe)) == [
        "RandAugment (2 x magnitude 9)",
        "MixUp 0.2 or CutMix 1",
        "label smoothing 0.1",
        "measured is the moving average of decay 0.999",
    ]
    assert list(additions(replace(CRD, cutmix=0.5))) == ["CutMix 0.5"]
