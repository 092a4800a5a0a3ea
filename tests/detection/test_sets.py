"""Detection sets: the generated one, one geometry for all networks, and batches that depend on nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from kdtable.data.detection import shapes
from kdtable.data.detection.annotations import Annotated
from kdtable.data.detection.sets import DetectionPart, DetectionSet, InMemory, load, longest, resized
from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.data.validation import hold_out
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.models.detection.batch import DetectionBatch
from tests.detection.small import CPU, RECIPE
from tests.detection.small import shapes as shapes_set

SIZES = (48, 64), (70, 41), (64, 64), (30, 90), (50, 50)


def of_sizes(side: int = 64, flip: bool = True) -> DetectionSet:
    """Five images of different sizes, each with as many boxes as its number; the last box of an image is a crowd."""
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (3, *size), dtype=np.uint8) for size in SIZES]
    known = []
    for number, size in enumerate(SIZES):
        corners = [(box, 2 * box + 1, box + 9, 2 * box + 20) for box in range(number)]
        one = Annotated.plain(size, corners, [box % 3 for box in range(number)])
        crowds = np.arange(number) == number - 1
        known.append(replace(one, crowds=crowds if number > 1 else one.crowds))
    spec = replace(BUILT_IN["shapes"], image_size=side, train_count=5, test_count=5, flip=flip)
    part = DetectionPart(InMemory(pixels), known)
    return DetectionSet(spec, part, part)


def batches(of: DetectionSet, ranks: Ranks = SINGLE_PROCESS, seed: int = 1, epoch: int = 1) -> list[DetectionBatch]:
    return list(of.stream(replace(RECIPE, batch_size=3), CPU, ranks).epoch(seed, "main", epoch))


def test_boxes_of_shapes_hold_their_figures() -> None:
    """A figure has one colour and touches all sides of its box, up to the rounding of an ellipse."""
    images, known = shapes.read("train", 40)
    counts = {len(one.labels) for one in known}
    assert counts == {1, 2}
    assert {label for one in known for label in one.labels.tolist()} == {0, 1, 2}
    for image, one in zip(images, known, strict=True):
        (left, top, right, bottom), label = one.boxes[-1].astype(int), one.labels[-1]
        assert min(right - left, bottom - top) >= 16
        assert max(right - left, bottom - top) <= 36
        middle = image[:, (top + bottom) // 2, (left + right) // 2]
        figure = (image[:, top:bottom, left:right] == middle[:, None, None]).all(axis=0)
        assert figure.any(axis=0).mean() > 0.85
        assert figure.any(axis=1).mean() > 0.85
        area = {0: 1.0, 1: np.pi / 4, 2: 0.5}[int(label)]
        assert figure.mean() == pytest.approx(area, abs=0.05)


def test_shapes_are_the_same_whatever_their_number() -> None:
    (first, boxes), (again, same) = shapes.read("test", 3), shapes.read("test", 5)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=False))
    assert np.array_equal(boxes[2].boxes, same[2].boxes)
    assert not np.array_equal(shapes.read("train", 1)[0][0], first[0])


def test_images_are_resized_as_torchvision_resizes_them() -> None:
    """To the bit, with padding; so are the boxes."""
    of, side = of_sizes(side=80, flip=False), 80
    transform = GeneralizedRCNNTransform(side, longest(side), [0.0] * 3, [1.0] * 3).eval()
    for batch in of.evaluation_batches("test", 3, CPU):
        raw = [next(of._parts["test"].pixels.batches(iter([[place]])))[0] for place in batch.index.tolist()]
        known = [of.boxes("test")[place] for place in batch.index.tolist()]
        targets = [{"boxes": torch.from_numpy(one.boxes[~one.crowds])} for one in known]
        images, found = transform([image.float() / 255 for image in raw], targets)
        assert torch.equal(batch.images, images.tensors)
        assert list(batch.sizes) == images.image_sizes
        assert batch.originals == tuple(one.size for one in known)
        for ours, theirs in zip(batch.boxes, found, strict=True):
            torch.testing.assert_close(ours, theirs["boxes"], rtol=1e-5, atol=1e-4)


def test_a_mirrored_image_has_mirrored_boxes() -> None:
    """The pixels in a box stay the same, mirrored; crowds are left out, and labels stay."""
    plain = {
        int(place): (batch, row) for batch in batches(of_sizes(flip=False)) for row, place in enumerate(batch.index)
    }
    mirrored = 0
    for batch in batches(of_sizes(flip=True)):
        for row, place in enumerate(batch.index.tolist()):
            other, there = plain[place]
            height, width = batch.sizes[row]
            ours, theirs = batch.images[row, :, :height, :width], other.images[there, :, :height, :width]
            if torch.equal(ours, theirs):
                assert torch.equal(batch.boxes[row], other.boxes[there])
                continue
            mirrored += 1
            assert torch.equal(ours, theirs.flip(2))
            left, top, right, bottom = other.boxes[there].unbind(1)
            assert torch.allclose(batch.boxes[row], torch.stack([width - right, top, width - left, bottom], 1))
            assert torch.equal(batch.labels[row], other.labels[there])
            assert len(batch.labels[row]) == max(0, place - 1) + (place == 1)
    assert 0 < mirrored < 5


def test_an_epoch_depends_on_its_seed_stage_and_number_alone() -> None:
    of = of_sizes()
    for one, other in zip(batches(of), batches(of_sizes()), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.draws, other.draws)
    assert sorted(place for batch in batches(of) for place in batch.index.tolist()) == list(range(5))
    assert not torch.equal(batches(of, epoch=2)[0].draws, batches(of)[0].draws)
    assert not torch.equal(batches(of, seed=2)[0].draws, batches(of)[0].draws)


def test_ranks_share_the_batches() -> None:
    whole = batches(of_sizes(), Ranks(0, 2, 1))
    parts = [batches(of_sizes(), Ranks(rank, 2, 1)) for rank in (0, 1)]
    alone = next(of_sizes().stream(replace(RECIPE, batch_size=5), CPU).epoch(1, "main", 1))
    first, second = parts[0][0], parts[1][0]
    assert (first.whole, len(first), len(second)) == (5, 3, 2)
    assert torch.equal(torch.cat([first.images, second.images]), alone.images)
    assert torch.equal(torch.cat([first.draws, second.draws]), alone.draws)
    assert len(whole) == 1


@pytest.mark.parametrize(
    ("size", "side", "found"),
    [
        ((480, 640), 800, (800, 1066)),
        ((427, 640), 800, (800, 1199)),
        ((100, 400), 800, (333, 1333)),
        ((64, 64), 64, (64, 64)),
    ],
)
def test_sizes_of_coco(size: tuple[int, int], side: int, found: tuple[int, int]) -> None:
    assert resized(size, side) == found


@given(st.tuples(st.integers(20, 90), st.integers(20, 90)), st.integers(16, 90))
@settings(max_examples=40, deadline=None)
def test_any_size_is_torchvisions(size: tuple[int, int], side: int) -> None:
    transform = GeneralizedRCNNTransform(side, longest(side), [0.0] * 3, [1.0] * 3).eval()
    assert transform([torch.zeros(3, *size)])[0].image_sizes == [resized(size, side)]


def test_the_shorter_side_is_drawn() -> None:
    stream = of_sizes().stream(replace(RECIPE, sides=(32, 48)), CPU)
    sides = {min(size) for epoch in (1, 2, 3) for batch in stream.epoch(1, "main", epoch) for size in batch.sizes}
    assert sides <= {17, 26, 31, 32, 46, 47, 48}  # 30 x 90 is limited by its longer side; others are rounded down
    assert {32, 48} <= sides


def test_images_are_held_out() -> None:
    spec = hold_out(replace(BUILT_IN["shapes"], train_count=10, test_count=2), 3)
    found, whole = load(spec), load(replace(BUILT_IN["shapes"], train_count=10, test_count=2))
    (left,), (held,) = (list(found.evaluation_batches(part, 16, CPU)) for part in ("train", "validation"))
    (every,) = whole.evaluation_batches("train", 16, CPU)
    assert (len(left), len(held), found.spec.train_count) == (7, 3, 7)
    images = torch.cat([left.images, held.images])
    assert sorted(images.sum(dim=(1, 2, 3)).tolist()) == sorted(every.images.sum(dim=(1, 2, 3)).tolist())
    assert len(found.boxes("validation")) == 3


def test_a_set_of_boxes_has_no_labels_to_classify() -> None:
    from kdtable.errors import BadRequest
    from kdtable.numerics.precision import Precision
    from kdtable.tasks.classification import Classification

    spec: DataSpec = BUILT_IN["shapes"]
    assert (spec.task, BUILT_IN["digits"].task) == ("detection", "classification")
    with pytest.raises(BadRequest, match="no labels of whole images"):
        Classification(shapes_set(), RECIPE, 1, Precision("fp32", CPU))
