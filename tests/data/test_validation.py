"""Held-out training images: stratified, the same for every seed, and parted from what is trained on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtable.data import load, resolve
from kdtable.data.sets import ImageSet
from kdtable.data.streamed import StreamedSet
from kdtable.data.validation import hold_out, split
from kdtable.errors import BadRequest
from kdtable.recipes.recipe import Recipe
from tests import engine
from tests.data.photos import SIZE, TRAIN, image_folder

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, batch_size=4, lr=0.1, milestones=(), crop_padding=0)


def spec_of(labels: torch.Tensor, classes: int, count: int):
    spec = replace(engine.image_set().spec, num_classes=classes, train_count=len(labels))
    return hold_out(spec, count)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(2, 30), min_size=1, max_size=6), data=st.data())
def test_the_split_is_stratified_and_loses_no_image(sizes: list[int], data: st.DataObject) -> None:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(labels)))]
    count = data.draw(st.integers(1, max(1, len(labels) // 3)))
    left, held = split(spec_of(labels, len(sizes), count), labels)
    assert torch.equal(torch.cat([left, held]).sort().values, torch.arange(len(labels)))
    assert len(held) == count
    for label, size in enumerate(sizes):
        share = int((labels[held] == label).sum())
        assert abs(share - count * size / sum(sizes)) < 1  # its exact share, rounded up or down
        assert share < size


#: Three of the classes 0 and 1, two of the others: of equal remainders the lower class gives one more.
PINNED = [0, 2, 8, 9, 10, 13, 17, 19, 31, 36]


def test_the_split_is_pinned() -> None:
    """A changed split gives other numbers under the same run ids."""
    labels = torch.arange(40) % 4
    _, held = split(spec_of(labels, 4, 10), labels)
    assert held.tolist() == PINNED


def test_a_class_without_images_to_train_on_is_refused() -> None:
    labels = torch.tensor([0] * 18 + [1])
    with pytest.raises(
        BadRequest,
        match=r"^--validation 17 holds out 1 images of class 1 of noise, which has 1: nothing of it is left",
    ):
        split(spec_of(labels, 2, 17), labels)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "^--validation 0 holds out no image: use at least 1, or leave it out$"),
        (-3, "^--validation -3 holds out no image"),
        (91, "^--validation 91 leaves too little to train on: digits-few has 100 training images of 10 classes"),
        (5000, "^--validation 5000 leaves too little to train on"),
    ],
)
def test_impossible_counts_are_refused(count: int, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        hold_out(resolve("digits-few"), count)


def test_the_identity_names_the_count_and_is_neutral_without() -> None:
    whole = resolve("digits-few")
    held = hold_out(whole, 20)
    assert hold_out(whole, None) is whole
    assert "validation" not in whole.identity()
    assert held.identity() == {**whole.identity(), "validation": 20}
    assert (held.train_count, held.test_count) == (80, whole.test_count)
    assert held.key == whole.key  # its teachers are those of the set
    assert held.split_key != whole.split_key


def test_a_set_in_memory_is_parted() -> None:
    whole, held = (load(hold_out(resolve("digits-few"), count), Path()) for count in (None, 20))
    assert isinstance(whole, ImageSet)
    assert isinstance(held, ImageSet)
    (kept,) = held.evaluation_batches("validation", 64, CPU)
    left = torch.cat([batch.images for batch in held.evaluation_batches("train", 50, CPU)])
    assert kept.labels.bincount().tolist() == [2] * 10
    assert held.train_labels.bincount().tolist() == [8] * 10
    every = torch.cat([batch.images for batch in whole.evaluation_batches("train", 50, CPU)])
    assert sorted(map(float, torch.cat([left, kept.images]).sum(dim=(1, 2, 3)))) == sorted(
        map(float, every.sum(dim=(1, 2, 3)))
    )
    batches = list(held.stream(RECIPE, CPU).epoch(1, "main", 1))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(80))
    assert all(torch.equal(batch.labels, held.train_labels[batch.index]) for batch in batches)
    with pytest.raises(ValueError, match="has no images that are held out"):
        whole.evaluation_batches("validation", 64, CPU)


def test_a_streamed_set_is_parted(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set")
    for name in TRAIN:  # two of each, so that one can be held out
        file = root / "train" / name
        shutil.copyfile(file, file.with_name(f"again-{file.name}"))
    spec = hold_out(resolve(f"imagenet:{root}", SIZE), 4)
    images, whole = StreamedSet.of(spec, 0), StreamedSet.of(resolve(f"imagenet:{root}", SIZE), 0)
    left, held = split(spec, whole.train_labels)
    assert torch.equal(images.train_labels, whole.train_labels[left])
    every = torch.cat([batch.images for batch in whole.evaluation_batches("train", 3, CPU)])
    for _ in range(2):  # decoded, then kept
        kept = torch.cat([batch.images for batch in images.evaluation_batches("validation", 3, CPU)])
        assert torch.equal(kept, every[held])
    trained = torch.cat([batch.images for batch in images.evaluation_batches("train", 3, CPU)])
    assert torch.equal(trained, every[left])
    tested = [torch.cat([b.images for b in one.evaluation_batches("test", 3, CPU)]) for one in (images, whole)]
    assert torch.equal(*tested)
    batches = list(images.stream(RECIPE, CPU).epoch(1, "main", 1))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(len(left)))
    assert all(torch.equal(batch.labels, images.train_labels[batch.index]) for batch in batches)
