"""IKL and GKL: Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, and its generalisation.

KL's gradient splits into one of weighted gaps between logits, and one of a cross-entropy. With d = t - s of raw logits,
weights w of each image, and W = sum of w:

    wMSE = 1/4 sum over classes j, k of w_j w_k (d_j - d_k)^2 = W/2 * sum of w_j (d_j - m)^2,   m = sum of w d / W
    IKL  = mean over images of beta wMSE + alpha H(softmax(t / T), softmax(s / T))

There is no T^2, and beta weighs the squares. Without a class prior w = softmax(t / T2), T2 = 100. With one, w is the
row of the image's class in a matrix: uniform in the first epoch, then the mean of softmax(t / T2) over the class's
images in the epoch before. A class without images keeps its row (the released code divides 0 by 0).

GKL, the second version, raises w to the power gamma, and divides the sum of wMSE over the batch by that of W^2; T2 = 4.
The paper tuned alpha, beta, gamma and the prior for each pair. The term's weight rises over 20 epochs (a schedule).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Objective, Params, as_kind
from kdtable.methods.parts.logits import soft_cross_entropy
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe


def wmse_loss(s: Tensor, t: Tensor, weights: Tensor) -> Tensor:
    """(B,) wMSE of each image.

    Args:
        s: (B, C) student logits.
        t: (B, C) teacher logits, constants.
        weights: (B, C) w, constants >= 0 that are not all 0.
    """
    gap, total = t - s, weights.sum(dim=1, keepdim=True)
    mean = (weights * gap).sum(dim=1, keepdim=True) / total
    return total.squeeze(1) * (weights * (gap - mean).square()).sum(dim=1) / 2


@dataclass(frozen=True)
class IKLParams(Params):
    """Hyper-parameters.

    Attributes:
        temperature: T of the cross-entropy.
        alpha: weight of the cross-entropy.
        beta: weight of the squares.
        class_prior: whether the weights are the classes' means of the last epoch.
        weight_temperature: T2, of the teacher's probabilities that become weights.
    """

    temperature: Annotated[PositiveFloat, TEMPERATURE] = 4.0
    alpha: Annotated[NonNegativeFloat, WEIGHT] = 1.0
    beta: Annotated[NonNegativeFloat, WEIGHT] = 8.0
    class_prior: bool = False
    weight_temperature: PositiveFloat = 100.0


class IKL(Method):
    """Weighted squares of gaps between logits, and a soft cross-entropy."""

    hyper = IKLParams
    combines_with_kd = False
    term = "ikl"
    weight_range = None
    relates_samples = True  # the class prior counts every image of a batch

    prior: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(IKLParams)
        classes = setting.num_classes
        self.register_buffer("prior", torch.full((classes, classes), 1 / classes))
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes))

    @classmethod
    def unfit(cls, recipe: Recipe, objective: Objective) -> str | None:
        """Refuse mixed images with a class prior."""
        if recipe.mixes and as_kind(objective.params, IKLParams).class_prior:
            return "its class prior has a row for each class, and a mixed image has two"
        return super().unfit(recipe, objective)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted sum of both parts; in training, also counts the batch for the next epoch's prior."""
        p, s, t = self.params, student.logits, teacher.logits
        entropy = soft_cross_entropy(s, t, p.temperature).mean()
        weights = self.prior[batch.labels] if p.class_prior else self._probabilities(t)
        if self.training and p.class_prior:
            self.count(t, batch.labels)
        return p.beta * self.squares(s, t, weights) + p.alpha * entropy

    def squares(self, s: Tensor, t: Tensor, weights: Tensor) -> Tensor:
        """wMSE, averaged over the images."""
        return wmse_loss(s, t, weights).mean()

    def _probabilities(self, t: Tensor) -> Tensor:
        return (t / self.params.weight_temperature).softmax(dim=1)

    @torch.no_grad()
    def count(self, t: Tensor, labels: Tensor) -> None:
        """Add a batch's probabilities (B, C) to the sums of their classes."""
        of_class = (labels == torch.arange(len(self.counts), device=labels.device).unsqueeze(1)).to(self.sums.dtype)
        self.sums += of_class @ self._probabilities(t)  # not index_add_, whose order of addition varies on a GPU
        self.counts += of_class.sum(dim=1)

    @torch.no_grad()
    def end_epoch(self, *_: object) -> None:
        """Make the epoch's means the next epoch's prior."""
        counts = self.counts.unsqueeze(1)
        self.prior.copy_(torch.where(counts > 0, self.sums / counts.clamp(min=1), self.prior))
        self.sums.zero_()
        self.counts.zero_()


@dataclass(frozen=True)
class GKLParams(IKLParams):
    """Hyper-parameters, beside those of IKL.

    Attributes:
        weight_temperature: T2, of the teacher's probabilities that become weights.
        gamma: power of the weights.
    """

    weight_temperature: PositiveFloat = 4.0
    gamma: NonNegativeFloat = 0.1


class GKL(IKL):
    """IKL with weights to a power, which are normalised over the batch."""

    hyper = GKLParams
    term = "gkl"

    def squares(self, s: Tensor, t: Tensor, weights: Tensor) -> Tensor:
        """wMSE of the batch over its squared sums of weights."""
        powered = weights ** self.setting.params(GKLParams).gamma
        return wmse_loss(s, t, powered).sum() / powered.sum(dim=1).square().sum()
