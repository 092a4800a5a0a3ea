"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, in one stage.

A regressor maps the student's second stage output to the teacher's shape:

    loss = mean over all elements of (regressor(s) - t)^2

The regressor is a convolution with batch norm and ReLU. Weight 100.

As the CRD benchmark runs it: the hint is learned beside cross-entropy during the whole training. The paper instead
trains the lower half of the student on the hint alone and then distils by soft targets (see ``fitnet_2stage``). The
closing ReLU cannot match the negative part of a signed tap (wide ResNets).
"""

from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.parts.adaptors import Convolution, teacher_shapes, unreachable
from kdtable.models.outputs import Outputs

#: Index of the stage output that is hint and guided layer.
HINT = 1


def hint_loss(s: Tensor, t: Tensor) -> Tensor:
    """Mean squared difference of two tensors of the same shape; ``t`` is a constant."""
    return F.mse_loss(s, t)


class FitNet(Method):
    """A hint from the second stage output, beside cross-entropy."""

    term = "fitnet"
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.regress = Convolution(setting.student_shapes.stages[HINT], teacher_shapes(setting).stages[HINT], relu=True)

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse sizes that no regressor maps."""
        return unreachable(student_shapes.stages[HINT], teacher_shapes.stages[HINT])

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The hint loss of the regressed second stage output."""
        return hint_loss(self.regress(student.stages[HINT]), teacher.stages[HINT])
