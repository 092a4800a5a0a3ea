"""The learning-rate schedule, and its scaling to other lengths."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdtable.recipes.recipe import Recipe
from kdtable.typed import read

CRD = Recipe(epochs=240, batch_size=64, lr=0.05, milestones=(150, 180, 210))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    epochs = draw(st.integers(1, 400))
    milestones = draw(st.lists(st.integers(1, epochs), max_size=5, unique=True))
    return Recipe(epochs, 64, 0.1, tuple(sorted(milestones)))


@pytest.mark.parametrize(
    ("first", "last", "rate"), [(1, 150, 0.05), (151, 180, 0.005), (181, 210, 0.0005), (211, 240, 0.00005)]
)
def test_schedule_of_the_benchmark(first: int, last: int, rate: float) -> None:
    assert [CRD.lr_at(epoch) for epoch in range(first, last + 1)] == [pytest.approx(rate)] * (last - first + 1)


def test_no_milestones_no_decay() -> None:
    assert {Recipe(9, 1, 0.3, ()).lr_at(epoch) for epoch in range(1, 10)} == {0.3}


@pytest.mark.parametrize(("epochs", "milestones"), [(24, (15, 18, 21)), (12, (8, 9, 11)), (480, (300, 360, 420))])
def test_scaled_milestones(epochs: int, milestones: tuple[int, ...]) -> None:
    scaled = CRD.scaled(epochs)
    assert scaled.epochs == epochs
    assert scaled.milestones == milestones


@given(recipes(), st.integers(1, 500))
def test_scaling_keeps_order_and_range(recipe: Recipe, epochs: int) -> None:
    milestones = recipe.scaled(epochs).milestones
    assert list(milestones) == sorted(milestones)
    assert len(milestones) == len(recipe.milestones)
    assert all(0 <= m <= epochs for m in milestones)
    # Never farther than half an epoch from the exact place.
    assert all(
        abs(m * recipe.epochs - own * epochs) * 2 <= recipe.epochs
        for m, own in zip(milestones, recipe.milestones, strict=True)
    )


@given(recipes())
def test_scaling_to_the_own_length_changes_nothing(recipe: Recipe) -> None:
    assert recipe.scaled(recipe.epochs) == recipe


@pytest.mark.parametrize("epochs", range(1, 241))
def test_the_first_epoch_of_the_benchmark_is_never_decayed(epochs: int) -> None:
    assert CRD.scaled(epochs).lr_at(1) == CRD.lr


def test_scaling_changes_only_epochs_and_milestones() -> None:
    scaled = CRD.scaled(30)
    changed = {f.name for f in fields(Recipe) if getattr(scaled, f.name) != getattr(CRD, f.name)}
    assert changed == {"epochs", "milestones"}


@given(recipes())
def test_meaning_gives_the_recipe_back(recipe: Recipe) -> None:
    assert Recipe.from_mapping(recipe.identity()) == recipe


def test_a_later_setting_enters_the_meaning_only_when_it_is_used() -> None:
    assert "first_epoch_lr" not in CRD.identity()
    warm = replace(CRD, first_epoch_lr=0.01)
    assert warm.identity() == CRD.identity() | {"first_epoch_lr": 0.01}
    assert Recipe.from_mapping(warm.identity()) == warm
    assert [warm.lr_at(epoch) for epoch in (1, 2, 150)] == [0.01, 0.05, 0.05]


def test_what_lies_around_an_image_is_black_unless_it_is_said() -> None:
    assert "crop_fill" not in CRD.identity(), "so older runs keep their ids"
    assert CRD.full_identity()["crop_fill"] == "zero"
    mirrored = replace(CRD, crop_fill="reflect")
    assert mirrored.identity() == CRD.identity() | {"crop_fill": "reflect"}
    assert Recipe.from_mapping(mirrored.identity()) == mirrored
    assert Recipe.from_mapping(CRD.identity()).crop_fill == "zero"
    with pytest.raises(ValueError, match="crop_fill is one of zero, reflect, not 'grey'"):
        read(Recipe, CRD.full_identity() | {"crop_fill": "grey"})


def test_numbers_outside_their_ranges_are_refused() -> None:
    assert read(Recipe, CRD.full_identity()) == CRD
    for name, value in {
        "lr": 0.0,
        "momentum": 1.0,
        "weight_decay": -1e-4,
        "crop_padding": -1,
        "warmup_epochs": -1,
        "label_smoothing": 1.0,
        "mixup": -0.1,
        "randaugment_magnitude": 31,
        "ema": 1.0,
    }.items():
        with pytest.raises(ValueError, match=f"{name} must"):
            read(Recipe, CRD.full_identity() | {name: value})


def test_a_warm_up_rises_from_a_share_of_the_rate() -> None:
    recipe = replace(CRD, epochs=30, milestones=(20,), lr=0.1, warmup_epochs=10)
    rates = [recipe.lr_at(epoch) for epoch in (1, 6, 10, 11, 20, 21)]
    assert rates == pytest.approx([0.01, 0.055, 0.091, 0.1, 0.1, 0.01])
    assert recipe.scaled(6).warmup_epochs == 2


def test_without_a_warm_up_it_is_not_in_the_meaning() -> None:
    assert not {"warmup_epochs", "warmup_factor"} & CRD.identity().keys()
    assert replace(CRD, warmup_epochs=5).identity()["warmup_epochs"] == 5


def rates_of_torch(recipe: Recipe, decay: str) -> list[float]:
    """As torchvision's reference training makes them: a scheduler for the warm-up, then another one, both by epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedulers, left = torch.optim.lr_scheduler, recipe.epochs - recipe.warmup_epochs
    warm = schedulers.LinearLR(optimizer, recipe.warmup_factor, total_iters=recipe.warmup_epochs)
    later = (
        schedulers.CosineAnnealingLR(optimizer, left, eta_min=recipe.lr_min)
        if decay == "cosine"
        else schedulers.LinearLR(optimizer, 1.0, recipe.lr_min / recipe.lr, total_iters=left)
    )
    whole = schedulers.SequentialLR(optimizer, [warm, later], [recipe.warmup_epochs])
    rates = []
    for _ in range(recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        whole.step()
    return rates


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize(("warmup", "lr_min"), [(3, 0.0), (1, 0.01), (5, 0.1)])
def test_rates_that_fall_all_the_time_are_those_of_torch(decay: str, warmup: int, lr_min: float) -> None:
    recipe = Recipe(12, 64, 0.5, (), schedule=decay, lr_min=lr_min, warmup_epochs=warmup, warmup_factor=0.01)
    rates = [recipe.lr_at(epoch) for epoch in range(1, 13)]
    assert rates == pytest.approx(rates_of_torch(recipe, decay))
    assert rates[warmup] == max(rates) == 0.5


def test_a_cosine_by_hand() -> None:
    recipe = Recipe(4, 64, 0.2, (), schedule="cosine", lr_min=0.1)
    assert [recipe.lr_at(epoch) for epoch in range(1, 5)] == pytest.approx(
        [0.2, 0.15 + 0.05 * 0.5**0.5, 0.15, 0.15 - 0.05 * 0.5**0.5]
    )
    line = replace(recipe, schedule="linear")
    assert [line.lr_at(epoch) for epoch in range(1, 5)] == pytest.approx([0.2, 0.175, 0.15, 0.125])
    only_warm = replace(recipe, warmup_epochs=9, warmup_factor=0.0)
    assert [only_warm.lr_at(epoch) for epoch in (1, 4)] == pytest.approx([0.0, 0.2 * 3 / 9])


def test_recipes_that_train_alike_have_one_identity() -> None:
    plain = replace(CRD, schedule="cosine", optimizer="adamw")
    others = (replace(plain, milestones=()), replace(plain, momentum=0.8), replace(plain, nesterov=True))
    assert {other.settled() for other in others} == {plain.settled()}
    assert plain.settled().idle().keys() == {"milestones", "lr_factor", "momentum", "nesterov", "randaugment_magnitude"}
    assert CRD.settled() == CRD
    assert replace(CRD, randaugment_magnitude=3, lr_min=0.1).settled() == CRD
    used = replace(CRD, randaugment=1, randaugment_magnitude=3, schedule="linear", milestones=(), lr_min=0.01)
    assert used.settled() == used


def test_what_is_neutral_is_not_in_the_meaning() -> None:
    later = {"optimizer", "schedule", "lr_min", "label_smoothing", "mixup", "cutmix", "randaugment", "ema"}
    assert not later & CRD.identity().keys()
    assert replace(CRD, mixup=0.2).identity() == CRD.identity() | {"mixup": 0.2}
    assert Recipe.from_mapping(replace(CRD, ema=0.9).identity()).ema == 0.9
