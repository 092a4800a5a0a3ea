"""Where fine-grained imitation (``fgfi``) looks: the places of a feature map whose anchors fit a box well.

A place is marked if the IoU of one of its anchors with a box exceeds half of that box's best IoU over all anchors of
the map, those that leave the image included. A map's mask is the union over the boxes.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torchvision.ops import box_iou

#: Of a box's best IoU, that a place's must exceed.
FRACTION: Final = 0.5
#: Size in pixels up to whose double a box belongs to the finest level.
FINEST: Final = 56.0


def place_mask(anchors: Tensor, boxes: Tensor, size: tuple[int, int], *, whole_pixels: bool = False) -> Tensor:
    """(H, W) bool, the marked places of one image's map.

    Args:
        anchors: (H * W * A, 4) as x1, y1, x2, y2, place by place.
        boxes: (n, 4) ground truth.
        size: H and W.
        whole_pixels: count widths as x2 - x1 + 1, as the first code does; a box of one pixel then marks nothing.
    """
    if not len(boxes):
        return torch.zeros(size, dtype=torch.bool, device=anchors.device)
    iou = pixel_iou(anchors, boxes) if whole_pixels else box_iou(anchors, boxes)
    best_at = iou.view(size[0] * size[1], -1, len(boxes)).amax(dim=1)
    return (best_at > FRACTION * best_at.amax(dim=0)).any(dim=1).view(size)


def anchors_above(anchors: Tensor, boxes: Tensor, size: tuple[int, int], *, whole_pixels: bool = False) -> Tensor:
    """(H, W) int64, how many pairs of an anchor and a box exceed the bound at each place."""
    iou = pixel_iou(anchors, boxes) if whole_pixels else box_iou(anchors, boxes)
    above = iou > FRACTION * iou.amax(dim=0) if len(boxes) else iou > 0
    return above.view(*size, -1).sum(dim=2)


def pixel_iou(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) IoU of boxes (n, 4) and (m, 4) whose corners are whole pixels that belong to them."""
    iou = box_iou(_with_corner(a), _with_corner(b))
    point = (b[:, 0] == b[:, 2]) & (b[:, 1] == b[:, 3])
    return torch.where(point, 0, iou)


def _with_corner(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], boxes[:, 2:] + 1], dim=1)


def levels_of(boxes: Tensor, count: int, finest: float = FINEST) -> Tensor:
    """(n,) int64, the one of ``count`` levels (0 the finest) that each box belongs to.

    clamp( floor( log2( sqrt((w + 1)(h + 1)) / finest + 1e-6 ) ), 0, count - 1 )
    """
    w, h = (boxes[:, 2:] - boxes[:, :2] + 1).unbind(dim=1)
    return ((w * h).sqrt() / finest + 1e-6).log2().floor().clamp(0, count - 1).long()


def level_masks(
    anchors: Sequence[Tensor],
    boxes: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    finest: float = FINEST,
    *,
    whole_pixels: bool = False,
) -> list[Tensor]:
    """(B, H, W) bool of each level, in which a box marks places on its own level alone.

    Args:
        anchors: (H * W * A, 4) of each level, place by place.
        boxes: (n, 4) ground truth of each image.
        sizes: H and W of each level.
        finest: see :func:`levels_of`.
        whole_pixels: see :func:`place_mask`.
    """
    at = [levels_of(each, len(sizes), finest) for each in boxes]
    return [
        torch.stack(
            [
                place_mask(anchors[level], each[own == level], size, whole_pixels=whole_pixels)
                for each, own in zip(boxes, at, strict=True)
            ]
        )
        for level, size in enumerate(sizes)
    ]
