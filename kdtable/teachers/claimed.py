"""Compare a teacher's accuracy with its published claim. Does not import torch."""

import math
from typing import Final

from kdtable.data.spec import BUILT_IN

#: Tolerated gap in points of top-1 accuracy: other versions of libraries cost a few tenths.
TOLERANCE: Final = 0.5

#: Standard errors that the gap must also exceed if only a part of the test set was measured.
ERRORS: Final = 2


def standard_error(top1: float, images: int) -> float:
    """Standard error, in points, of an accuracy (percent) measured on ``images`` images."""
    accuracy = top1 / 100
    return 100 * math.sqrt(accuracy * (1 - accuracy) / images)


def falls_short(top1: float, claimed: float, images: int, *, whole: bool) -> bool:
    """Whether a teacher's accuracy is too far below the claim to be the published one, used as intended.

    Args:
        top1: measured, percent.
        claimed: published, percent.
        images: number of images measured.
        whole: whether these are the claim's whole test set. On a part of it, or on another sample, the gap must also
            exceed two standard errors.
    """
    gap = claimed - top1
    return gap > TOLERANCE and (whole or gap > ERRORS * standard_error(top1, images))


def shortfall(network: str, data: str, top1: float, claimed: float | None, images: int) -> str | None:
    """A clause about a teacher that falls short of its claim; ``None`` if it does not, or has no claim.

    Args:
        network: the teacher's.
        data: key of the data set that it was measured on.
        top1: measured, percent.
        claimed: published, percent.
        images: number of images measured.
    """
    # Only the built-in sets are known to be whole.
    if claimed is None or not falls_short(top1, claimed, images, whole=data in BUILT_IN):
        return None
    return f"teacher {network} reaches {top1:.2f} %, and its source claims {claimed:.2f} %"
