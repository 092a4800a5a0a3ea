"""MGD on detectors: Yue, Deng and Zhou, "Matching Guided Distillation", ECCV 2020, as its code for RetinaNet has it.

Taps are C2 to C5, the backbone's stages before their last ReLU. Matching, reducers and margins are those of
classification (`kdtable.methods.mgd`). The student's taps go through a group norm of the method's own, and stage i has
its factor f_i:

    L = sum over stages of P_i / f_i, divided by the nominal batch size and by ``processes``

Rule of thumb of its authors: with good factors each stage's term is near 0.01 at the start. The released training sums
P over the 2 images of each of 8 processes, whose gradients are then averaged: hence ``processes``.

Channels are matched before iterations 0, 5000, 10000, 15000, 31000 and 62000 of 90000. Here it is before the first
epoch that begins at one of these or later, in proportion to the length of the training. Matching reads training images
with the test transform; the released code takes them from its own training stream.

The released student has group norms in the last block of each stage, too, and a trainable first stage. This belongs to
the student's network here, not to the method.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from kdtable.methods.base import Norms, Setting, Stage
from kdtable.methods.detection.affines import tap_affines
from kdtable.methods.detection.base import detected, shapes_of
from kdtable.methods.detection.updates import update_epochs, update_iterations
from kdtable.methods.mgd import MGD as ClassifierMGD
from kdtable.methods.objective import Params, as_kind
from kdtable.methods.parts.mgd_settings import Matching
from kdtable.methods.parts.number_lists import numbers, one_each
from kdtable.models.outputs import Outputs


@dataclass(frozen=True)
class DetectorMatching(Matching):
    """Hyper-parameters: how channels are matched and compared.

    Attributes:
        reducer: how a student channel's teacher channels become one (see ``reducers``).
        ignore: stages (from 0) that add nothing, like "0,1".
        factors: divisors of the stages' terms, fine to coarse, or one for all.
        processes: a further divisor of the loss: over how many processes the recipe averages gradients.
        norm_groups: groups of the norms on the student's taps; as many of them as divide a tap's channels.
        update_every: iterations between two matchings, out of ``iterations``.
        slow_update_every: the same from ``slow_from`` on.
        slow_from: iteration from which matchings are rarer.
        iterations: of the recipe, to which the three before belong.
        update_after: epochs (from 1) after which channels are matched, like "1,2,6"; replaces the iterations.
        sweep_images: about how many training images a matching reads.
        margins_from: "teacher" for the teacher's norms, "default" for an untrained one.
        student_taps: the student's maps are those before their activation.
    """

    factors: str = "5e7,5e7,5e6,5e6"
    processes: PositiveInt = 8
    norm_groups: PositiveInt = 32
    update_every: PositiveInt = 5_000
    slow_update_every: PositiveInt = 31_000
    slow_from: PositiveInt = 20_000
    iterations: PositiveInt = 90_000
    sweep_images: PositiveInt = 16_016
    student_taps: Literal["preacts"] = "preacts"

    def __post_init__(self) -> None:
        """Raise `ValueError` for lists that hold anything but numbers of their kind."""
        super().__post_init__()
        if min(numbers("factors", self.factors)) <= 0:
            raise ValueError(f"factors divide, so they are above 0, and '{self.factors}' are not")

    def unfactored(self, count: int) -> str | None:
        """Why ``factors`` do not fit so many stages; ``None`` if they do."""
        given = len(numbers("factors", self.factors))
        return None if given in (1, count) else f"there are {given} factors for {count} stages: set factors to one each"

    def is_due_in(self, epoch: int, epochs: int) -> bool:
        """Whether channels are matched before an epoch, counted from 1, of so many."""
        if self.update_after:
            return self.is_due(epoch)
        at = update_iterations(self.iterations, self.update_every, self.slow_update_every, self.slow_from)
        return epoch in update_epochs(at, self.iterations, epochs)


class MGD(ClassifierMGD):
    """Partial distances of matched channels of the backbone's stages."""

    hyper = DetectorMatching
    student_features = teacher_features = frozenset({"taps"})
    matching: DetectorMatching

    def __init__(self, setting: Setting) -> None:
        student, teacher = map(maps, shapes_of(setting))
        super().__init__(replace(setting, student_shapes=student, teacher_shapes=teacher))
        self.matching = setting.params(DetectorMatching)
        if reason := self.matching.unfactored(self.count):
            raise ValueError(reason)
        self.factors = one_each("factors", self.matching.factors, self.count)
        widths = (tap.shape[1] for tap in student.preacts)
        self.adaptors = nn.ModuleList(nn.GroupNorm(gcd(self.matching.norm_groups, width), width) for width in widths)

    def _norms(self, teacher: nn.Module | None, shapes: Outputs) -> Sequence[nn.BatchNorm2d | None]:
        if self.setting.params(DetectorMatching).margins_from != "teacher":
            return [None] * len(shapes.preacts)
        if teacher is None:
            raise ValueError("the margins are of the teacher's norms, and there is no teacher")
        return [_as_batch_norm(*affine) for affine in tap_affines(teacher)]

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired."""
        return super().inapplicable(maps(student_shapes), maps(teacher_shapes))

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """Refuse taps that cannot be paired, used stages without matching shapes, and factors for other stages."""
        matching = as_kind(params, DetectorMatching)
        student, teacher = maps(student_shapes), maps(teacher_shapes)
        return (
            cls.inapplicable(student, teacher)
            or matching.unmatchable(student, teacher)
            or matching.unfactored(len(student.preacts))
        )

    def main_stage(self) -> Stage:
        """The main stage, which reads the backbones' taps."""
        return replace(super().main_stage(), student_features=self.student_features)

    def sweep_before(self, stage: Stage, epoch: int) -> int | None:
        """``sweep_images`` before epochs in which matching is due, if the stage has the method's term."""
        is_due = self.matching.is_due_in(epoch, stage.recipe.epochs)
        return self.matching.sweep_images if is_due and self.term in (term.name for term in stage.terms) else None

    def observe(self, student: Outputs, teacher: Outputs | None, batch: Any) -> None:
        """See the base class."""
        super().observe(maps(student), teacher and maps(teacher), batch)

    def begin_step(self, teacher: Outputs | None, batch: Any) -> None:
        """See the base class."""
        super().begin_step(teacher and maps(teacher), batch)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Any) -> Tensor:
        """The sum of the stages' partial losses over their factors, divided by batch size and processes.

        Raises:
            ValueError: no sweep has matched the channels yet.
        """
        losses = self.partials(maps(student), maps(teacher), batch)
        factors = [self.factors[stage] for stage in self.used]
        total = torch.stack([loss / factor for loss, factor in zip(losses, factors, strict=True)]).sum()
        return total / (self.setting.recipe.batch_size * self.matching.processes)


def maps(outputs: object) -> Outputs:
    """A detector's taps as pre-activations, as classification has them."""
    return outputs if isinstance(outputs, Outputs) else Outputs(torch.empty(0), preacts=detected(outputs).taps)


def _as_batch_norm(weight: Tensor, bias: Tensor) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(weight))
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    return norm
