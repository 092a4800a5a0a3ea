"""Where fine-grained imitation looks, beside a double loop, and properties of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdtable.methods.detection.masks import FRACTION, level_masks, levels_of, place_mask

SIZE = (4, 6)
STRIDE = 8


def grid() -> Tensor:
    """Two anchors at each of 4 x 6 places, (H * W * A, 4)."""
    found = []
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            x, y = column * STRIDE, row * STRIDE
            found += [[x - w, y - h, x + w, y + h] for w, h in ((6, 6), (10, 5))]
    return torch.tensor(found, dtype=torch.float64)


def iou(a: list[float], b: list[float], extra: float) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0]) + extra
    h = min(a[3], b[3]) - max(a[1], b[1]) + extra
    areas = [(c[2] - c[0] + extra) * (c[3] - c[1] + extra) for c in (a, b)]
    return max(w, 0) * max(h, 0) / (sum(areas) - max(w, 0) * max(h, 0))


def by_loops(anchors: Tensor, boxes: Tensor, *, whole_pixels: bool = False) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    for box in boxes.tolist():
        ious = [iou(anchor, box, float(whole_pixels)) for anchor in anchors.tolist()]
        for place in range(SIZE[0] * SIZE[1]):
            if max(ious[2 * place : 2 * place + 2]) > FRACTION * max(ious):
                mask[place // SIZE[1], place % SIZE[1]] = True
    return mask


corner = st.integers(-8, 48)
box = st.tuples(corner, corner, st.integers(2, 40), st.integers(2, 40)).map(
    lambda found: [found[0], found[1], found[0] + found[2], found[1] + found[3]]
)
some_boxes = st.lists(box, min_size=1, max_size=4).map(lambda found: torch.tensor(found, dtype=torch.float64))


@given(some_boxes, st.booleans())
def test_mask_is_that_of_a_double_loop(boxes: Tensor, whole_pixels: bool) -> None:
    found = place_mask(grid(), boxes, SIZE, whole_pixels=whole_pixels)
    assert torch.equal(found, by_loops(grid(), boxes, whole_pixels=whole_pixels))


@given(some_boxes)
def test_mask_is_the_union_over_the_boxes(boxes: Tensor) -> None:
    each = torch.stack([place_mask(grid(), one[None], SIZE) for one in boxes])
    assert torch.equal(place_mask(grid(), boxes, SIZE), each.any(dim=0))


def test_nothing_is_marked_without_boxes() -> None:
    assert not place_mask(grid(), torch.zeros(0, 4), SIZE).any()


def test_nothing_is_marked_by_a_box_of_one_pixel() -> None:
    assert not place_mask(grid(), torch.tensor([[8.0, 8.0, 8.0, 8.0]]), SIZE, whole_pixels=True).any()


def test_nothing_is_marked_by_a_box_far_from_every_anchor() -> None:
    assert not place_mask(grid(), torch.tensor([[900.0, 900.0, 950.0, 950.0]]), SIZE).any()


@pytest.mark.parametrize(("side", "level"), [(1, 0), (110, 0), (112, 1), (222, 1), (224, 2), (448, 3), (4000, 4)])
def test_levels_of_squares(side: float, level: int) -> None:
    assert levels_of(torch.tensor([[0.0, 0.0, side, side]]), 5).item() == level


def test_small_images_have_their_own_finest_size() -> None:
    boxes = torch.tensor([[0.0, 0.0, 16, 16], [0.0, 0.0, 36, 36]])
    assert levels_of(boxes, 3).tolist() == [0, 0]
    assert levels_of(boxes, 3, finest=12.0).tolist() == [0, 1]


def test_a_box_marks_its_own_level_alone() -> None:
    boxes = [torch.tensor([[0.0, 0.0, 16, 16]]), torch.tensor([[0.0, 0.0, 36, 36]]), torch.zeros(0, 4)]
    masks = level_masks([grid().float()] * 2, boxes, [SIZE] * 2, finest=12.0)
    assert [[mask.any().item() for mask in level] for level in masks] == [[True, False, False], [False, True, False]]
