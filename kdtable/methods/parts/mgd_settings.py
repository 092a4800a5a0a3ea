"""The hyper-parameters of ``mgd``, and checks of the networks that they fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdtable.methods.objective import Params
from kdtable.methods.parts.number_lists import numbers
from kdtable.models.outputs import Outputs

TAPS: Final = ("preacts", "stages")


@dataclass(frozen=True)
class Matching(Params):
    """Hyper-parameters: how channels are matched and compared.

    Attributes:
        kd_temperature: T of the KD term.
        reducer: how a student channel's teacher channels become one (see ``reducers``).
        ignore: stages (from 0) that add nothing, like "0,1".
        update_every: epochs between two matchings.
        update_after: epochs (from 1) after which channels are matched, like "1,2,6"; replaces ``update_every``.
        loss_factor: divisor of the loss, besides the batch size.
        sweep_images: about how many training images a matching reads.
        margins_from: "teacher" for the teacher's batch norms, "default" for an untrained one.
        student_taps: one of ``TAPS`` for all stages, or a list with one per stage.
    """

    kd_temperature: PositiveFloat = 1.5
    reducer: Literal["amp", "rd", "sp", "sm"] = "amp"
    ignore: str = ""
    update_every: PositiveInt = 2
    update_after: str = ""
    loss_factor: PositiveFloat = 1e4
    sweep_images: PositiveInt = 20000
    margins_from: Literal["teacher", "default"] = "teacher"
    student_taps: str = "preacts"

    def __post_init__(self) -> None:
        """Raise `ValueError` for an unknown tap, and for a list that holds anything but whole numbers."""
        if unknown := [tap for tap in self.student_taps.split(",") if tap not in TAPS]:
            raise ValueError(f"student_taps is one of {', '.join(TAPS)}, or one for each stage, not '{unknown[0]}'")
        _whole("ignore", self.ignore)
        _whole("update_after", self.update_after)

    def used(self, count: int) -> list[int]:
        """The stages to compare, out of ``count``."""
        ignored = _whole("ignore", self.ignore)
        return [stage for stage in range(count) if stage not in ignored]

    def taps(self, count: int) -> tuple[str, ...]:
        """The student's tap ("preacts" or "stages") at each of ``count`` stages."""
        named = tuple(self.student_taps.split(","))
        return named * count if len(named) == 1 else named

    def is_due(self, epoch: int) -> bool:
        """Whether channels are matched before an epoch, counted from 1."""
        if epoch == 1:
            return True
        after = _whole("update_after", self.update_after)
        return epoch - 1 in after if after else (epoch - 1) % self.update_every == 0

    def unmatchable(self, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Why channels cannot be matched, if the numbers of stages agree; ``None`` if they can."""
        pairs = list(zip(student_shapes.preacts, teacher_shapes.preacts, strict=True))
        if len(self.student_taps.split(",")) not in (1, len(pairs)):
            return f"student_taps names neither one tap nor one for each of the {len(pairs)} stages"
        used = self.used(len(pairs))
        if not used:
            return "every stage is ignored"
        for stage in used:
            s, t = pairs[stage]
            if reason := _unmatchable(s, t):
                return f"{reason}, and at stage {stage} (from 0) the student's is {_size(s)}, the teacher's {_size(t)}"
        return None

    def without_norms(self, teacher_shapes: Outputs, norms: Sequence[nn.BatchNorm2d | None]) -> str | None:
        """Why the batch norms in front of the teacher's taps give no margins; ``None`` if they do or need not."""
        if self.margins_from != "teacher":
            return None
        for stage in self.used(len(norms)):
            norm, channels = norms[stage], teacher_shapes.preacts[stage].shape[1]
            if norm is None:
                return f"the teacher has no batch norm in front of stage {stage} (from 0)"
            if norm.num_features != channels:  # a ShuffleNetV2's has half of the channels
                found = f"{norm.num_features} of {channels} channels"
                return f"the teacher's batch norm in front of stage {stage} (from 0) has {found}"
        return None


def _whole(name: str, given: str) -> tuple[int, ...]:
    """The whole numbers of a list such as "0,2", which may be empty."""
    found = numbers(name, given) if given.strip() else ()
    if not all(number.is_integer() and number >= 0 for number in found):
        raise ValueError(f"{name} takes whole numbers from 0, like 0,2, not '{given}'")
    return tuple(map(int, found))


def _unmatchable(s: Tensor, t: Tensor) -> str | None:
    if s.shape[1] > t.shape[1]:
        return "each channel of the student's map needs one of the teacher's"
    if s.shape[2:] != t.shape[2:]:
        return "it compares maps of equal size"
    return None


def _size(x: Tensor) -> str:
    return " x ".join(map(str, x.shape[1:]))
