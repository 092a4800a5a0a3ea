"""RandAugment: torchvision's operations, from draws of our own."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, autoaugment

from kdtable.data.randaugment import NAMES, RandAugment, applied
from kdtable.data.stream import Stream

THEIRS = autoaugment.RandAugment()


def picture(width: int = 12, height: int = 9) -> Image.Image:
    draw = np.random.default_rng(3)
    return Image.fromarray(draw.integers(0, 200, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("negative", [False, True])
def test_every_operation_is_that_of_torchvision(number: int, magnitude: int, negative: bool) -> None:
    image = picture()
    (name, (strengths, signed)) = list(THEIRS._augmentation_space(31, (9, 12)).items())[number]
    assert name == NAMES[number]
    strength = float(strengths[magnitude]) if strengths.ndim else 0.0
    strength *= -1.0 if signed and negative else 1.0
    expected = autoaugment._apply_op(image, name, strength, InterpolationMode.NEAREST, None)
    assert np.array_equal(applied(image, number, magnitude, negative=negative), expected)


def test_operations_come_one_after_the_other() -> None:
    image, augment = picture(), RandAugment(2, 20)
    rotated = applied(image, NAMES.index("Rotate"), 20, negative=True)
    expected = applied(rotated, NAMES.index("Solarize"), 20, negative=False)
    draws = [(NAMES.index("Rotate") + 0.5) / 14, 0.49, (NAMES.index("Solarize") + 0.01) / 14, 0.5]
    assert np.array_equal(augment(image, draws), expected)
    assert not np.array_equal(expected, image)
    for edge in (0.0, 1 - 2**-53):
        augment(image, [edge] * augment.draws)


def test_a_stream_augments_its_crops() -> None:
    draw = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels, augment = torch.arange(7), RandAugment(2, 9)
    plain = list(Stream(images, labels, batch_size=4, pad=1).epoch(3, "main", 2))
    found = list(Stream(images, labels, batch_size=4, pad=1, augment=augment).epoch(3, "main", 2))
    drawn = augment.drawn(3, "main", 2, 7)
    assert not torch.equal(drawn, augment.drawn(3, "main", 3, 7))
    position = 0
    for before, after in zip(plain, found, strict=True):
        assert torch.equal(before.index, after.index)
        assert torch.equal(before.labels, after.labels)
        assert after.view is None
        assert after.images.is_contiguous(memory_format=torch.channels_last)
        for one, other in zip(before.images, after.images, strict=True):
            crop = Image.fromarray((one * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
            expected = np.asarray(augment(crop, drawn[position].tolist())).astype(np.float32) / np.float32(255)
            assert np.array_equal(other.permute(1, 2, 0).numpy(), expected)
            position += 1
    assert position == 7
