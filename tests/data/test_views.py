"""Two views of an image: a function of seed, stage, epoch and position, with torchvision's crops and colours."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as theirs
from torchvision.transforms.v2 import functional as on_tensors

from kdtable.data import colours, resolve
from kdtable.data.crops import random_box
from kdtable.data.streamed import StreamedSet
from kdtable.data.views import DRAWS, VIEWS, TwoViews, View, Views, boxes, cropped
from kdtable.distributed import Ranks
from kdtable.recipes.recipe import Recipe
from tests import engine
from tests.data.photos import SIZE, image_folder

RECIPE = Recipe(epochs=1, batch_size=16, lr=0.1, milestones=(), views="moco-v2")


def drawn(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(count: int = 6, size: int = 12) -> Tensor:
    return drawn(count, 3, size, size).float()


def stream(recipe: Recipe = RECIPE, ranks: Ranks | None = None, flip: bool = True) -> TwoViews:
    content = engine.image_set(train=40, size=12).train_images
    return TwoViews(content, recipe, flip=flip, device=engine.CPU, ranks=ranks or Ranks())


def epoch(number: int = 1, seed: int = 1, **others: object) -> list[Views]:
    return list(stream(**others).epoch(seed, "pretrain", number))  # type: ignore[arg-type]


def together(batches: list[Views]) -> Tensor:
    return torch.cat([torch.stack([batch.images, batch.other]) for batch in batches], dim=1)


def test_batches_are_a_function_of_seed_stage_and_epoch() -> None:
    first = epoch()
    assert torch.equal(together(first), together(epoch()))
    for others in (epoch(2), epoch(seed=2), list(stream().epoch(1, "main", 1))):
        assert not torch.equal(together(first), together(others))


def test_the_views_of_an_image_differ_and_lie_in_0_to_1() -> None:
    for kind in VIEWS:
        (batch, *_) = epoch(recipe=replace(RECIPE, views=kind))  # type: ignore[arg-type]
        assert not torch.equal(batch.images, batch.other)
        assert 0 <= together([batch]).min() < together([batch]).max() <= 1


def test_whole_batches_alone_without_labels() -> None:
    batches = epoch()
    assert [len(batch) for batch in batches] == [16, 16]
    assert len(set(torch.cat([batch.index for batch in batches]).tolist())) == 32
    assert not torch.cat([batch.labels for batch in batches]).any()


def test_ranks_share_a_batch() -> None:
    whole = epoch()
    shards = [epoch(ranks=Ranks(rank, 2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shards, strict=True):
        assert {part.whole for part in parts} == {16}
        assert torch.equal(together([batch]), together(parts))


def test_images_that_may_not_be_mirrored_are_not() -> None:
    content = torch.linspace(0, 1, 12).expand(64, 3, 12, 12).clone()
    view = View(jitter=0, grey=0, blur=0)
    for flip, mirrored in ((False, 0), (True, 64)):
        found = view.of(content, drawn(64, DRAWS), flip=flip)
        falling = int((found[:, 0, 0, 0] > found[:, 0, 0, -1]).sum())
        assert falling == 0 if not mirrored else 16 < falling < 48


@pytest.mark.parametrize(("height", "width", "least"), [(32, 32, 0.2), (8, 8, 0.08), (12, 40, 0.9)])
def test_crops_are_those_of_torchvisions_algorithm(height: int, width: int, least: float) -> None:
    draws = drawn(200, 41)
    found = boxes(draws[:, :40], height, width, least).tolist()
    for (left, top, wide, tall), own in zip(found, draws.tolist(), strict=True):
        assert (left, top, left + wide, top + tall) == random_box(width, height, own, least)


def test_scaled_crops_are_torchvisions() -> None:
    given, crops = images(), boxes(drawn(6, 40), 12, 12, 0.2)
    mirrored = torch.tensor([False, True] * 3)
    found = cropped(given, crops, mirrored)
    for image, (left, top, wide, tall), flipped, ours in zip(given, crops.tolist(), mirrored, found, strict=True):
        expected = on_tensors.resized_crop(image, top, left, tall, wide, [12, 12])
        torch.testing.assert_close(ours, expected.flip(2) if flipped else expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colours_are_torchvisions(name: str) -> None:
    given = images()
    given[0] = given[0, :1]  # grey: it has no hue
    amounts = torch.linspace(-0.1, 0.1, 6) if name == "hue" else torch.linspace(0.6, 1.4, 6)
    found = getattr(colours, name)(given, amounts)
    for image, amount, ours in zip(given, amounts, found, strict=True):
        expected = getattr(theirs, f"adjust_{name}")(image, amount.item())
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_grey_and_blur_are_torchvisions() -> None:
    given, sigma = images(), torch.linspace(0.1, 2, 6)
    torch.testing.assert_close(colours.grey(given), theirs.rgb_to_grayscale(given), rtol=1e-4, atol=1e-5)
    for image, one, ours in zip(given, sigma, colours.blur(given, sigma, 5), strict=True):
        torch.testing.assert_close(ours, theirs.gaussian_blur(image, [11, 11], [one.item()]), rtol=1e-4, atol=1e-5)


def test_what_is_drawn_happens_as_often_as_it_says() -> None:
    content = images(400, 8)
    plain = View(least=1.0, jitter=0, grey=0, blur=0)
    for field in ("jitter", "grey", "blur"):
        found = replace(plain, **{field: 0.3}).of(content.clone(), drawn(400, DRAWS), flip=False)
        changed = (found - plain.of(content.clone(), drawn(400, DRAWS), flip=False)).abs().amax(dim=(1, 2, 3)) > 1e-6
        assert 90 < int(changed.sum()) < 150


def test_a_picture_changes_as_a_float_image_does() -> None:
    """Bytes are rounded after every step, and Pillow's hue has 256 values; its blur is another approximation."""
    content = (images(20, 16) * 255).to(torch.uint8)
    view = View(least=1.0, blur=0)
    draws = drawn(20, DRAWS)
    ours = view.of(content.float() / 255, draws.clone(), flip=False)
    uncropped = replace(view, jitter=0, grey=0).of(content.float() / 255, draws.clone(), flip=False)
    for image, own, expected in zip(uncropped, draws, ours, strict=True):
        picture = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        found = theirs.to_tensor(view(picture, own[-view.draws :].tolist()))
        assert (found - expected).abs().mean() < 0.02


def test_photographs_have_two_views(tmp_path: Path) -> None:
    """The same by any number of processes; shards have their own images' views."""
    root = image_folder(tmp_path / "set")
    recipe = replace(RECIPE, batch_size=2)

    def views(ranks: Ranks | None = None) -> list[Views]:
        opened = StreamedSet.of(resolve(f"imagenet:{root}", SIZE), 0)
        return list(opened.two_views(recipe, engine.CPU, ranks or Ranks()).epoch(1, "pretrain", 1))

    whole = views()
    assert all(len(batch) == 2 and not batch.labels.any() for batch in whole)
    assert not torch.equal(whole[0].images, whole[0].other)
    assert torch.equal(together(whole), together(views()))
    shards = [views(Ranks(rank, 2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shards, strict=True):
        assert torch.equal(together([batch]), together(parts))
        assert {part.whole for part in parts} == {2}
