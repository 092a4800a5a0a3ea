"""FitNet on detectors, as ReviewKD's Table 4 has it: the mean squared difference of FPN levels.

    loss = sum over the chosen levels of the mean over all elements of (s - t)^2

It is learned beside the detector's own losses from the start. The FPNs' widths agree, so there is no regressor.

ReviewKD's authors say "the second stage's output of the FPN" and no weight. Which level that is they leave open: the
second output counted from P2 (P3, the default), or the one of residual stage 2 (P2, ``levels`` = "0"). The weight 0.5
is DSIG's, whose authors are partly the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdtable.methods.base import Setting
from kdtable.methods.detection.base import DetectorMethod, shapes_of
from kdtable.methods.detection.levels import unequal_widths
from kdtable.methods.fitnet import hint_loss
from kdtable.methods.objective import Params
from kdtable.methods.parts.number_lists import numbers
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs


@dataclass(frozen=True)
class LevelHintParams(Params):
    """Hyper-parameters.

    Attributes:
        levels: the compared FPN levels, counted from 0, the finest, like "1" or "0,1,2".
    """

    levels: str = "1"

    def __post_init__(self) -> None:
        """Raise `ValueError` for a list that holds anything but whole numbers."""
        if not all(number.is_integer() and number >= 0 for number in numbers("levels", self.levels)):
            raise ValueError(f"levels takes whole numbers from 0, like 0,1, not '{self.levels}'")

    def used(self, count: int) -> tuple[int, ...]:
        """The levels, out of ``count``.

        Raises:
            ValueError: there is no such level.
        """
        found = tuple(map(int, numbers("levels", self.levels)))
        if max(found) >= count:
            raise ValueError(f"there is no FPN level {max(found)}: the networks have levels 0 to {count - 1}")
        return found


class FitNet(DetectorMethod):
    """The squared difference of FPN levels of equal width."""

    hyper = LevelHintParams
    term = "fitnet"
    student_features = teacher_features = frozenset({"levels"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        student, _ = shapes_of(setting)
        self.used = setting.params(LevelHintParams).used(len(student.levels))

    @classmethod
    def unfit_detectors(cls, student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
        """Refuse FPNs whose levels differ."""
        return unequal_widths(student, teacher)

    def distilled(self, student: DetectorOutputs, teacher: DetectorOutputs, batch: DetectionBatch) -> Tensor:
        """The sum of the chosen levels' hint losses."""
        return torch.stack([hint_loss(student.levels[i], teacher.levels[i]) for i in self.used]).sum()
