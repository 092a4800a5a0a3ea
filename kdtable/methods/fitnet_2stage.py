"""FitNets: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, in two stages as in the paper.

Stage "hint" trains the student up to one of its stage outputs, with a regressor to the teacher's output:

    loss = mean over all elements of (regressor(s) - t)^2

The main stage then trains the whole student by soft targets, without the regressor.

The CRD benchmark has the one-stage form ``fitnet`` and publishes nothing for this one. Where the paper says nothing or
speaks of other networks, the defaults are the benchmark's: its hint layer (the second stage output), its regressor
(convolution, batch norm, ReLU), its recipe at a constant rate, the 30 epochs of its other initial stages, 0.1 CE + 0.9
KD at T = 4. The paper's loss has a factor 1/2 and a sum where this one has a mean; its regressor has no batch norm; its
KD weight decays. Nothing behind the hint moves: neither parameters nor batch-norm statistics.

As the DIH repository runs it: ``hint_group`` = 1, the first stage output. ``regressor`` = "where-needed": none where
the shapes agree, as they do for all its networks. ``hint_modes`` = "all-but-last": only the layers from the last stage
on are in eval mode, so that statistics between the hint and the last stage drift while weights stay. 40 epochs, then KD
with that repository's weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Norms, Setting, Stage
from kdtable.methods.fitnet import HINT, hint_loss
from kdtable.methods.objective import Params, as_kind
from kdtable.methods.parts.adaptors import Convolution, teacher_shapes, unreachable
from kdtable.models.blank import blank_images
from kdtable.models.outputs import Outputs

STAGE = "hint"


@dataclass(frozen=True)
class FitNetParams(Params):
    """Hyper-parameters, with the benchmark's defaults.

    Attributes:
        hint_group: number of the stage whose output is the hint, from 1.
        regressor: "always", or "where-needed": only between unequal shapes.
        hint_modes: what is in train mode in the hint stage: "trained": what it trains; "all-but-last" stage.
    """

    hint_group: PositiveInt = HINT + 1
    regressor: Literal["always", "where-needed"] = "always"
    hint_modes: Literal["trained", "all-but-last"] = "trained"


class FitNetTwoStage(Method):
    """A stage of hints, then soft targets."""

    hyper = FitNetParams
    combines_with_kd = False
    early_teacher_features = frozenset({"stages"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(FitNetParams)
        self.hint = self.params.hint_group - 1
        pair = [_tap(shapes, self.hint) for shapes in (setting.student_shapes, teacher_shapes(setting))]
        optional = self.params.regressor == "where-needed"
        alike = pair[0].shape[1:] == pair[1].shape[1:]
        self.regress = nn.Identity() if optional and alike else Convolution(*pair, relu=True)

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """Refuse a hint that is not there, or sizes that no regressor maps."""
        hint = as_kind(params, FitNetParams).hint_group - 1
        try:
            return unreachable(*(_tap(shapes, hint) for shapes in (student_shapes, teacher_shapes)))
        except ValueError as error:
            return str(error)

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """Always: the hint stage reads it."""
        return True

    def stages(self) -> tuple[Stage, ...]:
        """The hint stage and the main one."""
        return (self.early_stage(STAGE, "hint", frozenset({"stages"})), self.main_stage())

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The student up to its hint and the regressor in "hint"; then the whole student."""
        if stage.name != STAGE:
            return list(student.parameters())
        return [*self._below(student, self.hint), *self.regress.parameters()]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Put in train mode what ``hint_modes`` says in "hint"; then the whole student."""
        student.train(stage.name != STAGE)
        self.train(stage.name == STAGE)
        if stage.name == STAGE:
            last = self.hint
            if self.params.hint_modes == "all-but-last":
                last = max(last, len(self.setting.student_shapes.stages) - 2)
            _set_to_train(student, self._below(student, last))

    def _below(self, student: nn.Module, tap: int) -> list[nn.Parameter]:
        return below_hint(student, tap, self.setting.image_size)

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """The hint stage's term."""
        return {"hint": self.distillation}

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The hint loss of the regressed stage output."""
        return hint_loss(self.regress(student.stages[self.hint]), teacher.stages[self.hint])


def _tap(shapes: Outputs, hint: int) -> Tensor:
    if hint >= len(shapes.stages):
        raise ValueError(f"hint_group {hint + 1} is not there: a network has {len(shapes.stages)} stages")
    return shapes.stages[hint]


def _set_to_train(student: nn.Module, parameters: list[nn.Parameter]) -> None:
    """Put the modules whose parameters are all in ``parameters`` in train mode."""
    moving = {id(parameter) for parameter in parameters}
    for module in student.modules():
        held = [id(parameter) in moving for parameter in module.parameters()]
        if held and all(held):
            module.training = True


def below_hint(student: nn.Module, tap: int = HINT, image_size: int = 32) -> list[nn.Parameter]:
    """The parameters that a stage output of the student depends on, by its gradient for a blank image."""
    parameters = list(student.parameters())
    was_training = {module: module.training for module in student.modules()}
    student.eval()  # keeps the statistics as they are
    with torch.enable_grad():
        outputs = student(blank_images(1, image_size, parameters[0]), frozenset({"stages"}))
        gradients = torch.autograd.grad(outputs.stages[tap].sum(), parameters, allow_unused=True)
    for module, training in was_training.items():
        module.training = training
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
