"""Views of photographs, against torchvision's transforms."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from kdtable.data.crops import AREA, DRAWS, RATIO, central_view, random_box, training_view
from tests.data.photos import photo

SHAPES = [(50, 40), (40, 50), (33, 33), (31, 97), (20, 18), (17, 400)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_middle_is_torchvisions(shape: tuple[int, int]) -> None:
    image = photo(0, *shape)
    for size in (16, 28):
        expected = v2.CenterCrop(size)(v2.Resize(round(size * 256 / 224))(image))
        np.testing.assert_array_equal(central_view(image, size), np.asarray(expected))


def numbers(seed: int) -> list[float]:
    return torch.rand(DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_crop_is_scaled_as_by_torchvision(shape: tuple[int, int]) -> None:
    image = photo(1, *shape)
    mirrored = 0
    for seed in range(6):
        draws = numbers(seed)
        left, top, right, bottom = random_box(*shape, draws)
        expected = v2.functional.resized_crop(image, top, left, bottom - top, right - left, [16, 16])
        flipped = draws[-1] < 0.5
        mirrored += flipped
        np.testing.assert_array_equal(training_view(image, 16, draws, flip=False), np.asarray(expected))
        other = v2.functional.horizontal_flip(expected) if flipped else expected
        np.testing.assert_array_equal(training_view(image, 16, draws, flip=True), np.asarray(other))
    assert 0 < mirrored < 6


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_lie_inside_and_are_allowed(shape: tuple[int, int]) -> None:
    width, height = shape
    for seed in range(200):
        left, top, right, bottom = random_box(width, height, numbers(seed))
        wide, tall = right - left, bottom - top
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        # sides are rounded to pixels
        assert RATIO[0] * 0.8 < wide / tall < RATIO[1] * 1.25
        assert wide * tall < AREA[1] * width * height + wide + tall


def test_boxes_are_distributed_as_torchvisions() -> None:
    """Means of area, logarithm of the ratio, and place, each to five standard errors."""
    width, height, count = 500, 375, 3000
    crop = v2.RandomResizedCrop(224)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [crop.make_params([image]) for _ in range(count)]
    boxes = [random_box(width, height, numbers(seed)) for seed in range(count)]
    ours = [{"left": b[0], "top": b[1], "width": b[2] - b[0], "height": b[3] - b[1]} for b in boxes]
    for measure in (
        lambda p: p["width"] * p["height"] / (width * height),
        lambda p: math.log(p["width"] / p["height"]),
        lambda p: p["left"] / width,
        lambda p: p["top"] / height,
    ):
        one, other = (np.array([measure(p) for p in params]) for params in (ours, theirs))
        error = math.sqrt((one.var() + other.var()) / count)
        assert abs(one.mean() - other.mean()) < 5 * error
        assert abs(one.std() / other.std() - 1) < 0.1


def test_where_no_crop_fits_the_middle_is_taken() -> None:
    too_large = [0.999999, 0.5, 0.5, 0.5] * 10 + [0.9]
    assert random_box(10, 100, too_large) == (0, 43, 10, 56)
    assert random_box(100, 10, too_large) == (43, 0, 56, 10)
    theirs = v2.RandomResizedCrop(8, scale=(1.0, 1.0)).make_params([torch.empty(3, 100, 10)])
    assert (theirs["top"], theirs["height"], theirs["width"]) == (43, 13, 10)


def test_a_process_that_decodes_does_without_torchvision() -> None:
    code = "import sys, kdtable.data.decoding; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_draws_stay_what_they_are() -> None:
    """Stored results rest on these numbers: a change of them raises a version in DECODING_VERSIONS."""
    boxes = [random_box(500, 375, numbers(seed)) for seed in range(3)]
    assert boxes == [(20, 17, 406, 344), (82, 35, 230, 208), (11, 3, 374, 374)]
