"""RKD: Park et al., "Relational Knowledge Distillation", CVPR 2019.

On the embeddings e of a batch, with Huber(x) = x^2 / 2 for |x| < 1 and |x| - 1/2 beyond, averaged over all entries:

    D_ij = sqrt(max(|e_i|^2 + |e_j|^2 - 2 e_i.e_j, 1e-12)), D_ii = 0, divided by the mean of its positive entries
    u_ij = (e_j - e_i) / max(|e_j - e_i|, 1e-12),   A_ijk = u_ij . u_ik
    loss = 25 mean Huber(D_s - D_t) + 50 mean Huber(A_s - A_t)

As the CRD benchmark runs it: the weights are inside the loss, whose own weight is 1. Gradients flow through the mean of
the student's distances. A batch of one sample has no distances, and the reference divides 0 by 0; here the loss is 0.
Between equal embeddings the gradient of a direction is finite but up to 1e12 in size, as in the reference.

Memory: each network's directions are one (B, B, D) tensor, B times the size of its embeddings. (Angles from inner
products of the embeddings would lose their digits to cancellation.) Its angles are one (B, B, B) tensor; no
(B, B, B, D) tensor is made.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import given
from kdtable.methods.ranges import WEIGHT
from kdtable.models.outputs import Outputs

EPS = 1e-12
#: Below any mean of positive distances (each is at least 1e-6): it only replaces 0 / 0.
NO_DISTANCE = 1e-7
DISTANCE_WEIGHT, ANGLE_WEIGHT = 25.0, 50.0


def rkd_loss(
    s: Tensor, t: Tensor, distance_weight: float = DISTANCE_WEIGHT, angle_weight: float = ANGLE_WEIGHT
) -> Tensor:
    """Weighted sum of the distance loss and the angle loss.

    Args:
        s: (B, D_s) student embeddings.
        t: (B, D_t) teacher embeddings, constants.
        distance_weight: weight of the distance loss.
        angle_weight: weight of the angle loss.
    """
    distance = F.smooth_l1_loss(_distances(s), _distances(t))
    angle = F.smooth_l1_loss(_angles(s), _angles(t))
    return distance_weight * distance + angle_weight * angle


def _distances(e: Tensor) -> Tensor:
    """(B, B) distances in units of their mean."""
    square = e.square().sum(dim=1)
    gap = (square.unsqueeze(1) + square - 2 * (e @ e.T)).clamp(min=EPS).sqrt()
    gap = gap * (1 - torch.eye(len(e), dtype=gap.dtype, device=gap.device))
    mean = gap.sum() / (gap > 0).sum().clamp(min=1)
    return gap / mean.clamp(min=NO_DISTANCE)


def _angles(e: Tensor) -> Tensor:
    """(B, B, B) cosines of the angles at the first of three samples."""
    directions = F.normalize(e - e.unsqueeze(1), dim=2, eps=EPS)
    return torch.bmm(directions, directions.transpose(1, 2))


@dataclass(frozen=True)
class RKDParams(Params):
    """Hyper-parameters.

    Attributes:
        distance_weight: weight of the distance loss.
        angle_weight: weight of the angle loss.
    """

    distance_weight: Annotated[float, WEIGHT] = DISTANCE_WEIGHT
    angle_weight: Annotated[float, WEIGHT] = ANGLE_WEIGHT


class RKD(Method):
    """Distances and angles between embeddings."""

    hyper = RKDParams
    term = "rkd"
    weight_range = None
    relates_samples = True
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(RKDParams)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The relational loss of the embeddings."""
        return rkd_loss(
            given(student.embedding),
            given(teacher.embedding),
            self.params.distance_weight,
            self.params.angle_weight,
        )
