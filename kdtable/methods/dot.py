"""DOT: Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, with KD.

The loss is KD's, 0.1 CE + 0.9 KD at T = 4. Its optimiser has a momentum for each part: mu - delta for CE, and
mu + delta for KD (``training/dot``), with delta = 0.075 on CIFAR-100 and 0.09 on ImageNet. delta = 0 is KD.

The gradients of both parts must stay apart until the optimiser's step, so batches cannot be divided, and fp16's loss
scaling cannot be used.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from kdtable.methods.base import Stage
from kdtable.methods.kd import KD
from kdtable.methods.objective import Params
from kdtable.methods.ranges import Range


@dataclass(frozen=True)
class DOTParams(Params):
    """Hyper-parameters.

    Attributes:
        delta: in [0, 1), by how much the momentum of CE is lower, and that of KD higher, than the recipe's.
    """

    delta: Annotated[float, Field(ge=0, lt=1), Range(0.02, 0.3)] = 0.075


class DOT(KD):
    """KD with a momentum of its own."""

    hyper = DOTParams
    keeps_gradients_apart = True

    def main_stage(self) -> Stage:
        """The main stage, whose two momenta differ."""
        return replace(super().main_stage(), momentum_gap=self.setting.params(DOTParams).delta)
