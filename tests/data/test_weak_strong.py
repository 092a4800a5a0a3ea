"""A weak and a strong view of each image: the first is that of one view, the second has draws of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable import seeding
from kdtable.data.names import resolve
from kdtable.data.randaugment import RandAugment
from kdtable.data.sets import Images
from kdtable.data.streamed import StreamedSet
from kdtable.data.weak_strong import WeakAndStrong
from kdtable.distributed import Ranks
from kdtable.recipes.recipe import Recipe
from tests import engine
from tests.data.photos import SIZE, image_folder

ONE = Recipe(1, 16, 0.1, ())
TWO = replace(ONE, views="weak-strong", randaugment=2, randaugment_magnitude=10)


def views(images: Images, recipe: Recipe = TWO, ranks: Ranks | None = None, epoch: int = 1) -> list[WeakAndStrong]:
    found = list(images.stream(recipe, engine.CPU, ranks or Ranks()).epoch(3, "main", epoch))
    assert all(isinstance(batch, WeakAndStrong) for batch in found)
    return found  # type: ignore[return-value]


def strong(batches: list[WeakAndStrong]) -> torch.Tensor:
    return torch.cat([batch.strong for batch in batches])


@pytest.fixture(params=["in memory", "photographs"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Images:
    if request.param == "in memory":
        return engine.image_set(train=41, size=8)
    return StreamedSet.of(resolve(f"imagenet:{image_folder(tmp_path / 'set')}", SIZE), 0)


def test_weak_views_are_those_of_one_view(images: Images) -> None:
    found, plain = views(images), list(images.stream(ONE, engine.CPU).epoch(3, "main", 1))
    for two, one in zip(found, plain, strict=True):
        for name in ("images", "labels", "index"):
            assert torch.equal(getattr(two, name), getattr(one, name))
        assert two.strong.shape == one.images.shape
        assert two.strong.min() >= 0
        assert two.strong.max() <= 1
        assert two.view is None
    assert not torch.equal(strong(found), torch.cat([batch.images for batch in plain]))


def test_batches_are_a_function_of_seed_epoch_and_position(images: Images) -> None:
    whole = views(images)
    assert torch.equal(strong(whole), strong(views(images)))
    assert torch.equal(strong(whole), strong(views(images, replace(TWO, batch_size=2))))
    assert not torch.equal(strong(whole), strong(views(images, epoch=2)))


def test_shards_have_their_own_images_views(images: Images) -> None:
    recipe = replace(TWO, batch_size=4)
    shards = [views(images, recipe, Ranks(rank, 2)) for rank in range(2)]
    for batch, *parts in zip(views(images, recipe), *shards, strict=True):
        assert {part.whole for part in parts} == {len(batch)}
        for name in ("images", "strong", "labels", "index"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


def test_a_strong_view_is_a_crop_of_its_own_and_then_randaugment() -> None:
    images = engine.image_set(train=12, size=8)
    draw = seeding.generator("strong crops", 3, "main", 1)
    top, left = torch.randint(0, 9, (2, 12), generator=draw)
    mirrored = torch.randint(0, 2, (12,), generator=draw)
    augment = RandAugment(2, 10)
    operations = augment.drawn(3, "main", 1, 12)
    (batch,) = views(images)
    padded = torch.nn.functional.pad(images.train_images, (4, 4, 4, 4))
    for place, position in enumerate(batch.index.tolist()):
        crop = padded[position, :, top[place] : top[place] + 8, left[place] : left[place] + 8]
        crop = crop.flip(2) if mirrored[place] else crop
        picture = augment(Image.fromarray(crop.permute(1, 2, 0).numpy()), operations[place].tolist())
        expected = np.asarray(picture).astype(np.float32) / np.float32(255)
        assert np.array_equal(batch.strong[place].permute(1, 2, 0).numpy(), expected)
