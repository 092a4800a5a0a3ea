"""When a teacher falls short of what its publication claims. Needs no torch."""

import math
from typing import Final

from kdtable.data.spec import BUILT_IN

#: Points of top-1 accuracy that a measured teacher may lack: other versions of libraries cost a few tenths.
TOLERANCE: Final = 0.5

#: Standard errors that it may lack besides, where only a part of the test set was measured.
ERRORS: Final = 2


def standard_error(top1: float, images: int) -> float:
    """Of an accuracy (percent) that was measured on so many images, in points."""
    share = top1 / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def falls_short(top1: float, claimed: float, images: int, *, whole: bool) -> bool:
    """Whether a teacher's accuracy is too far below the claim for it to be the published one, used as intended.

    Args:
        top1: measured, percent.
        claimed: published, percent.
        images: that were measured.
        whole: whether they are all of the test set that the claim was measured on. On a part of it, or on another
            sample, the gap must also exceed two standard errors.
    """
    gap = claimed - top1
    return gap > TOLERANCE and (whole or gap > ERRORS * standard_error(top1, images))


def shortfall(network: str, data: str, top1: float, claimed: float | None, images: int) -> str | None:
    """What is wrong with a measured teacher, as a clause; ``None`` if nothing is, or nothing is claimed of it.

    Args:
        network: the teacher's.
        data: key of the data set that it was measured on.
        top1: measured, percent.
        claimed: published, percent.
        images: that were measured.
    """
    # The sets that we know by name are whole; any other holds a part of their images, or others.
    if claimed is None or not falls_short(top1, claimed, images, whole=data in BUILT_IN):
        return None
    return f"teacher {network} reaches {top1:.2f} %, and its source claims {claimed:.2f} %"
