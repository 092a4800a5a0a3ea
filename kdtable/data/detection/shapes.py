"""The generated set ``shapes``: rectangles, ellipses and triangles on noise.

Images of 64 x 64 pixels show one or two figures of one colour each, 16 to 36 pixels wide and high. A part has the same
images on every machine: all is drawn from one generator per image, on the CPU.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from kdtable import seeding
from kdtable.data.detection.annotations import Annotated

#: Height and width of the images.
SIZE: Final = 64
#: Smallest and largest side of a figure.
SIDES: Final = (16, 36)
#: Names of the classes.
CLASSES: Final = ("rectangle", "ellipse", "triangle")
#: Figures of one image overlap at most by this part of the smaller box.
_OVERLAP: Final = 0.3
_TRIES: Final = 20


def read(part: str, count: int) -> tuple[list[NDArray[np.uint8]], list[Annotated]]:
    """The images (3, 64, 64) of a part, ``train`` or ``test``, and their boxes."""
    drawn = [_image(seeding.generator("shapes", part, number)) for number in range(count)]
    return [pixels for pixels, _ in drawn], [boxes for _, boxes in drawn]


def _image(draw: torch.Generator) -> tuple[NDArray[np.uint8], Annotated]:
    pixels = torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8, generator=draw).numpy()
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(_one_of(1, 3, draw)):
        box = _free_box(boxes, draw)
        label, colour = _one_of(0, len(CLASSES), draw), torch.randint(256, (3, 1), generator=draw)
        if box is None:
            continue
        pixels[:, _figure(label, box)] = colour.to(torch.uint8).numpy()
        boxes.append(box)
        labels.append(label)
    return pixels, Annotated.plain((SIZE, SIZE), boxes, labels)


def _one_of(low: int, high: int, draw: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=draw))


def _free_box(others: list[tuple[int, int, int, int]], draw: torch.Generator) -> tuple[int, int, int, int] | None:
    """A box that overlaps the others little; ``None`` if there is no room."""
    for _ in range(_TRIES):
        width, height = _one_of(SIDES[0], SIDES[1] + 1, draw), _one_of(SIDES[0], SIDES[1] + 1, draw)
        left, top = _one_of(0, SIZE - width + 1, draw), _one_of(0, SIZE - height + 1, draw)
        box = left, top, left + width, top + height
        if all(_shared(box, other) <= _OVERLAP for other in others):
            return box
    return None


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """The overlap of two boxes as a part of the smaller one."""
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))


def _figure(label: int, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """(64, 64), the pixels of a figure that fills its box."""
    left, top, right, bottom = box
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    across = (columns - (left + right) / 2) / ((right - left) / 2)  # from -1 to 1 inside the box
    down = (rows - (top + bottom) / 2) / ((bottom - top) / 2)
    inside: NDArray[np.bool_] = (np.abs(across) < 1) & (np.abs(down) < 1)
    if label == 1:
        inside &= across**2 + down**2 < 1
    elif label == 2:
        inside &= 2 * np.abs(across) < 1 + down  # the apex is at the top
    return inside
