import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtable import seeding
from kdtable.data.stream import Batch, Stream, count_views, evaluation_batches


def some_set(count: int, height: int = 6, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def drawn(seed: int, stage: str, epoch: int, count: int, pad: int) -> list[tuple[int, int, int, int]]:
    """Per image, in the order of the batches: its index, top and left of its crop, 1 if mirrored."""
    generator = seeding.generator("batches", seed, stage, epoch)
    order = torch.randperm(count, generator=generator).tolist()
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).tolist()
    mirrored = torch.randint(0, 2, (count,), generator=generator).tolist()
    return list(zip(order, top, left, mirrored, strict=True))


def slow_crop(image: np.ndarray, pad: int, top: int, left: int, mirrored: bool) -> np.ndarray:
    _, height, width = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row, source_column = row + top - pad, column + left - pad
            if 0 <= source_row < height and 0 <= source_column < width:
                out[:, row, width - 1 - column if mirrored else column] = image[:, source_row, source_column]
    return out.astype(np.float32) / np.float32(255)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 9),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    pad=st.integers(0, 5),
    batch_size=st.integers(1, 5),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_batches_are_those_of_a_slow_twin(*, count, height, width, pad, batch_size, flip, seed):
    images, labels = some_set(count, height, width, seed)
    stream = Stream(images, labels, batch_size=batch_size, pad=pad, flip=flip)
    batches = list(stream.epoch(seed, "main", 3))
    index = torch.cat([batch.index for batch in batches]).tolist()
    pixels = torch.cat([batch.images for batch in batches]).numpy()
    draws = drawn(seed, "main", 3, count, pad)
    assert index == [place for place, *_ in draws]
    for got, (place, top, left, mirrored) in zip(pixels, draws, strict=True):
        expected = slow_crop(images[place].numpy(), pad, top, left, bool(mirrored and flip))
        np.testing.assert_array_equal(got, expected)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    pad=st.integers(0, 6),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_reflected_crops_are_those_of_torchs_padding(*, height, width, pad, flip, seed):
    pad = min(pad, height - 1, width - 1)  # a reflection is narrower than the image
    images, labels = some_set(9, height, width, seed)
    stream = Stream(images, labels, batch_size=4, pad=pad, fill="reflect", flip=flip)
    padded = torch.nn.functional.pad(images.float(), (pad, pad, pad, pad), mode="reflect") / 255
    pixels, index = gathered(stream, seed, "main", 2)
    draws = drawn(seed, "main", 2, 9, pad)
    assert index.tolist() == [place for place, *_ in draws]
    for got, (place, top, left, mirrored) in zip(pixels, draws, strict=True):
        crop = padded[place, :, top : top + height, left : left + width]
        assert torch.equal(got, crop.flip(-1) if mirrored and flip else crop)


def test_a_crops_place_does_not_depend_on_what_lies_around_the_image():
    images, labels = some_set(20)
    black, reflected = (
        next(Stream(images, labels, batch_size=20, fill=f).epoch(0, "main", 1)) for f in ("zero", "reflect")
    )
    assert torch.equal(black.index, reflected.index)
    assert torch.equal(black.view, reflected.view)
    inside = black.images != 0
    assert torch.equal(black.images[inside], reflected.images[inside])
    assert not torch.equal(black.images, reflected.images)


def gathered(stream: Stream, *key) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(stream.epoch(*key))
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.index for batch in batches])


def test_an_epoch_is_a_function_of_seed_stage_and_epoch():
    images, labels = some_set(50)
    stream = Stream(images, labels, batch_size=8)
    first, index = gathered(stream, 1, "main", 2)
    again, index_again = gathered(Stream(images, labels, batch_size=8), 1, "main", 2)
    assert torch.equal(first, again)
    assert torch.equal(index, index_again)
    for key in [(2, "main", 2), (1, "hint", 2), (1, "main", 3)]:
        other, other_index = gathered(stream, *key)
        assert not torch.equal(index, other_index)
        assert not torch.equal(first, other)


def test_the_draws_stay_what_they_are():
    """Stored results rest on these numbers: a change of them makes another stream."""
    # every image shows where its pixels are, so the sums tell crops and mirroring
    ramp = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(50, 3, 6, 6)
    stream = Stream(ramp, torch.zeros(50, dtype=torch.int64), batch_size=8)
    batch = next(stream.epoch(0, "main", 1))
    weights = torch.arange(1, 37).view(6, 6)
    sums = ((batch.images[:, 0] * 255).round().long() * weights).sum((1, 2))
    assert batch.index.tolist() == [17, 40, 31, 3, 8, 13, 2, 23]
    assert sums.tolist() == [1660, 7772, 12270, 1616, 3660, 5024, 2068, 4732]


def test_the_global_generator_is_left_alone():
    stream = Stream(*some_set(20), batch_size=8)
    state = torch.random.get_rng_state()
    list(stream.epoch(0, "main", 1))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_order_does_not_depend_on_batch_size_or_flip():
    images, labels = some_set(50)
    orders = [
        gathered(Stream(images, labels, batch_size=size, flip=flip), 0, "main", 1)[1]
        for size, flip in [(8, True), (16, True), (8, False)]
    ]
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def test_every_image_comes_once_with_its_label():
    images, labels = some_set(53)
    batches = list(Stream(images, labels, batch_size=8).epoch(0, "main", 4))
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(53))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), labels[index])
    assert {batch.epoch for batch in batches} == {4}


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (12, 4, [4, 4, 4]),
        (14, 4, [4, 4, 4, 2]),
        (13, 4, [4, 4, 5]),
        (5, 4, [5]),
        (4, 4, [4]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (3, 2, [3]),
    ],
)
def test_a_short_last_batch_is_kept_and_a_single_image_joins_the_one_before(count, batch_size, sizes):
    stream = Stream(*some_set(count), batch_size=batch_size)
    assert [len(batch.labels) for batch in stream.epoch(0, "main", 1)] == sizes


@pytest.mark.parametrize(
    ("pad", "flip", "count"), [(4, True, 162), (4, False, 81), (1, True, 18), (0, True, 2), (0, False, 1)]
)
def test_a_view_is_a_crop_and_its_mirroring(pad, flip, count):
    """Equal views of an image are equal pixels, different ones differ, and as many are met as there are."""
    images = torch.randint(1, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stream = Stream(images, torch.zeros(3, dtype=torch.int64), batch_size=2, pad=pad, flip=flip)
    assert count_views(pad, flip) == count
    met: dict[tuple[int, int], torch.Tensor] = {}
    for batch in (batch for epoch in range(1, 12 * count) for batch in stream.epoch(0, "main", epoch)):
        assert batch.view is not None
        for pixels, *place in zip(batch.images, batch.index.tolist(), batch.view.tolist(), strict=True):
            assert torch.equal(met.setdefault(tuple(place), pixels), pixels)
    assert {view for _, view in met} == set(range(count))
    for image in range(3):
        seen = {pixels.numpy().tobytes() for (index, _), pixels in met.items() if index == image}
        assert len(seen) == len([index for index, _ in met if index == image])


def test_views_of_an_image_are_numbered_by_place_and_mirroring():
    """Teachers' outputs are kept by these numbers."""
    stream = Stream(*some_set(50), batch_size=50)
    (batch,) = stream.epoch(7, "main", 2)
    expected = [(top * 9 + left) * 2 + mirrored for _, top, left, mirrored in drawn(7, "main", 2, 50, 4)]
    assert batch.view is not None
    assert batch.view.tolist() == expected
    plain = Stream(*some_set(50), batch_size=50, flip=False)
    assert next(plain.epoch(7, "main", 2)).view.tolist() == [view // 2 for view in expected]
    assert next(evaluation_batches(*some_set(5), 4)).view is None


def test_types_and_layout():
    images, labels = some_set(9)
    for batch in [
        next(Stream(images, labels, batch_size=4).epoch(0, "main", 1)),
        next(evaluation_batches(images, labels, 4)),
    ]:
        assert isinstance(batch, Batch)
        assert batch.images.shape == (4, 3, 6, 6)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.index.dtype == torch.int64


def test_values_are_bytes_over_255_as_to_tensor_has_them():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    label = torch.zeros(1, dtype=torch.int64)
    expected = (np.arange(256, dtype=np.uint8) / np.float32(255)).reshape(16, 16)
    assert expected.dtype == np.float32
    for batch in [
        next(Stream(ramp, label, batch_size=1, pad=0, flip=False).epoch(0, "main", 1)),
        next(evaluation_batches(ramp, label, 1)),
    ]:
        np.testing.assert_array_equal(batch.images[0, 1].numpy(), expected)


def test_without_padding_and_flip_images_are_unchanged():
    images, labels = some_set(20)
    pixels, index = gathered(Stream(images, labels, batch_size=8, pad=0, flip=False), 0, "main", 1)
    assert torch.equal(pixels, images[index].float() / 255)


def test_without_flip_nothing_is_mirrored():
    # brightness rises from left to right, in every crop of an image, unless it is mirrored
    images = torch.arange(1, 33, dtype=torch.uint8).expand(500, 3, 32, 32)
    stream = Stream(images, torch.zeros(500, dtype=torch.int64), batch_size=100, flip=False)
    pixels, _ = gathered(stream, 0, "main", 1)
    middle = pixels[:, 0, 16, 4:28]
    assert (middle.diff(dim=1) > 0).all()


def test_offsets_are_uniform_and_half_the_images_are_mirrored():
    count, pad = 16200, 4
    # one bright pixel tells where an image's crop began; a dimmer one to its right, whether it is mirrored
    images = torch.zeros(count, 3, 12, 12, dtype=torch.uint8)
    images[:, :, 6, 6], images[:, :, 6, 7] = 255, 100
    pixels, _ = gathered(Stream(images, torch.zeros(count, dtype=torch.int64), batch_size=300), 0, "main", 1)
    where = (pixels[:, 0] == 1).nonzero()
    assert len(where) == count
    row, column = where[:, 1], where[:, 2]
    right = pixels[torch.arange(count), 0, row, column + 1] > 0
    assert abs(right.float().mean().item() - 0.5) < 4 * 0.5 / count**0.5
    top = 6 + pad - row
    left = 6 + pad - torch.where(right, column, 11 - column)  # mirrored, column c has become 11 - c
    cells = torch.bincount(top * (2 * pad + 1) + left, minlength=81)
    expected = count / 81
    chi_square = ((cells - expected) ** 2 / expected).sum().item()
    assert len(cells) == 81
    assert chi_square < 140  # 80 degrees of freedom: exceeded once in 30,000


def test_evaluation_batches_hold_the_images_in_order():
    images, labels = some_set(11)
    batches = list(evaluation_batches(images, labels, 4))
    assert [len(batch.labels) for batch in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([batch.images for batch in batches]), images.float() / 255)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(11))
    assert {batch.epoch for batch in batches} == {0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_sees_the_same_batches():
    images, labels = some_set(300, 32, 32)
    here, there = (Stream(images, labels, batch_size=64, device=device) for device in ("cpu", "cuda"))
    for one, other in zip(here.epoch(0, "main", 1), there.epoch(0, "main", 1), strict=True):
        assert torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.index, other.index.cpu())
        assert torch.equal(one.labels, other.labels.cpu())
