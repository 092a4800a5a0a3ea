"""FitNets: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, in two stages as in the paper.

Stage "hint" trains the student up to its second stage output, with a regressor to the teacher's:

    loss = mean over all elements of (regressor(s) - t)^2

Nothing behind that output moves: neither parameters nor batch-norm statistics. The main stage then trains the whole
student by soft targets (0.1 CE + 0.9 KD at T = 4), the regressor is left aside.

The one-stage form ``fitnet`` is the CRD benchmark's, and no published row is this one. What the paper leaves open or
has for other networks follows the benchmark: its hint layer, its regressor (convolution, batch norm, ReLU), its
recipe at a constant rate, and the 30 epochs of its other initial stages. The paper's loss has a factor 1/2 and a sum
where this one has a mean, its regressor no batch norm, its KD weight a decay.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Stage
from kdtable.methods.fitnet import HINT, FitNet
from kdtable.models.outputs import Outputs

STAGE = "hint"


class FitNetTwoStage(FitNet):
    """A stage of hints, then soft targets."""

    term = ""
    student_features = frozenset()
    teacher_features = frozenset()

    @classmethod
    def needs_teacher(cls, terms: Mapping[str, float]) -> bool:
        """The hint stage reads it."""
        return True

    def stages(self) -> tuple[Stage, ...]:
        """The hint stage and the main one."""
        taps = frozenset({"stages"})
        return (self.early_stage(STAGE, "hint", taps, taps), self.main_stage())

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The student up to its hint, and the regressor; then the whole student."""
        if stage.name != STAGE:
            return list(student.parameters())
        return [*below_hint(student), *self.regress.parameters()]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """In the hint stage only what it trains is in train mode; then all of the student is."""
        student.train(stage.name != STAGE)
        self.train(stage.name == STAGE)
        if stage.name == STAGE:
            moving = {id(parameter) for parameter in below_hint(student)}
            for module in student.modules():
                if any(id(parameter) in moving for parameter in module.parameters(recurse=False)):
                    module.training = True

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """The hint stage's."""
        return {"hint": self.distillation}


def below_hint(student: nn.Module) -> list[nn.Parameter]:
    """The parameters that the student's hint depends on, found by following its gradient for a blank image."""
    parameters = list(student.parameters())
    was_training = {module: module.training for module in student.modules()}
    student.eval()  # so that no statistics move
    with torch.enable_grad():
        outputs = student(parameters[0].new_zeros(1, 3, 32, 32), frozenset({"stages"}))
        gradients = torch.autograd.grad(outputs.stages[HINT].sum(), parameters, allow_unused=True)
    for module, training in was_training.items():
        module.training = training
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
