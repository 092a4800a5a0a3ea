"""MGD without labels: MoCo v2 (``moco``) and Matching Guided Distillation (``mgd``) on the query view.

The repository of MGD, KaiyuYue/mgd, folder unsup (28 July 2021):

    L = InfoNCE + D / (B * 1e4)

with D as in ``mgd``, from taps before the activation. The teacher sees the query view too. Channels are matched before
the first epoch and after the epochs of ``update_after``.

Readings: the released code computes the margins before it loads the teacher's weights, so that they are those of an
untrained batch norm (``margins_from`` = "default"); "teacher" takes the teacher's.
"""

from dataclasses import dataclass
from typing import Any

from kdtable.methods.mgd import MGD
from kdtable.methods.moco import MoCo, MoCoParams
from kdtable.methods.parts.mgd_settings import Matching
from kdtable.methods.ranges import WEIGHT


@dataclass(frozen=True)
class MoCoMGDParams(MoCoParams, Matching):
    """Hyper-parameters of both."""

    def __post_init__(self) -> None:
        """Check both."""
        MoCoParams.__post_init__(self)
        Matching.__post_init__(self)


class MoCoMGD(MoCo, MGD):
    """Momentum contrast, and partial distances of matched channels of all stages."""

    hyper = MoCoMGDParams
    term = "mgd"
    weight_range = WEIGHT

    def get_extra_state(self) -> dict[str, object]:
        """The generator's state, and whether the channels are matched."""
        return MGD.get_extra_state(self)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore both."""
        MGD.set_extra_state(self, state)
