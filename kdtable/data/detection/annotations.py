"""The boxes of a part of a detection set, as NumPy arrays. Does not import torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """One image's boxes.

    Attributes:
        size: height and width in pixels.
        boxes: (n, 4) float32: left, top, right, bottom, in pixels.
        labels: (n,) int64, from 0.
        crowds: (n,) bool: regions of many objects, which neither teach nor count as missed.
        areas: (n,) float64, in square pixels: those of COCO's masks, or the boxes'. They divide small from large.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowds: NDArray[np.bool_]
    areas: NDArray[np.float64]

    @classmethod
    def plain(cls, size: tuple[int, int], boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> "Annotated":
        """Boxes (left, top, right, bottom) that are no crowds, with their own areas."""
        corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        sides = corners[:, 2:].astype(np.float64) - corners[:, :2]
        named = np.array(labels, dtype=np.int64)
        return cls(size, corners, named, np.zeros(len(named), dtype=np.bool_), sides.prod(axis=1))


def ground_truth(part: Sequence[Annotated], num_classes: int) -> dict[str, Any]:
    """The boxes in COCO's layout; image and category ids are positions, counted from 1."""
    images = [{"id": number, "height": one.size[0], "width": one.size[1]} for number, one in enumerate(part, start=1)]
    objects = [
        {
            "image_id": image,
            "category_id": int(label) + 1,
            "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for image, one in enumerate(part, start=1)
        for (left, top, right, bottom), label, crowd, area in _rows(one)
    ]
    return {
        "info": {},
        "images": images,
        "annotations": [{"id": number, **one} for number, one in enumerate(objects, start=1)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, num_classes + 1)],
    }


def _rows(one: Annotated) -> Iterator[tuple[NDArray[np.float64], int, bool, float]]:
    """Box, label, crowd and area of each object; float64, so that sides are those of the corners exactly."""
    return zip(one.boxes.astype(np.float64), one.labels, one.crowds, one.areas, strict=True)
