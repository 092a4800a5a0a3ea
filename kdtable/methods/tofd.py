"""TOFD: Zhang et al., "Task-Oriented Feature Distillation", NeurIPS 2020.

Student and teacher have extra classifiers on their stages (networks ``NETWORK+tofd``). Deepest first, F_i, G_i are the
features and s_i, t_i the logits of student and teacher, W_i a linear link, and n the number of the student's features:

    L = sum over i < n of [ alpha ||F_i W_i^T - G_i|| + CE(s_i, y) + H_T(t_i, s_i) ]
        + beta sum over i < n of ( ||W_i W_i^T - I|| + ||W_i^T W_i - I|| )
    H_T(t, s) = -1/B sum over samples and classes of softmax(t / T) ln softmax(s / T),   T = 1 + t0 / 250 * epoch

Norms are Frobenius norms of the whole batch's matrix, neither squared nor averaged. alpha = 0.05, beta = 0.03, t0 = 3.
The 250 is independent of the number of epochs. CE of the first classifier is the term ce; the rest is the method's own.

As the DIH repository runs it (``pairing`` = "shifted"): its CIFAR ResNets have four logits (the main classifier and one
on each stage) but three features. Feature i is paired with logits i, so the main, deep and middle classifiers are
trained and the shallow one never is. With "aligned" (the first author's other code) the main classifier counts as the
deepest, and the branch that doubles it is unused. Networks without a branch on their last stage (wide ResNets) are
aligned either way.

``orthogonal`` = "all" adds the beta term for every link in use (released code), "resized" only for links between
unequal widths (the README), "none" for no link (the effect of the other code). ``teacher_mode`` = "train" lets the
teacher's batch norms use the batch's statistics (released code), "eval" does not.

The released code has a link for each of the teacher's classifiers; here unused ones are not built.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import given, teacher_shapes
from kdtable.methods.ranges import WEIGHT
from kdtable.models.outputs import Outputs

#: Epochs over which the temperature rises by t0 from 1.
RISE: Final = 250


@dataclass(frozen=True, slots=True)
class Classifiers:
    """A network's logits (B, C) and features (B, D), deepest first; it may have more logits than features."""

    logits: list[Tensor]
    features: list[Tensor]


def deepest_first(outputs: Outputs, stages: int, pairing: str) -> Classifiers:
    """The classifiers of a network with this number of stages.

    If every stage has a branch, the deepest one shares the main classifier's features, which are listed once.
    """
    branches = outputs.branches[::-1]
    logits = [outputs.logits, *(logits for logits, _ in branches)]
    features = [features for _, features in branches]
    if len(branches) < stages:
        features.insert(0, given(outputs.embedding))
    elif pairing == "aligned":
        del logits[1]
    return Classifiers(logits, features)


def feature_loss(s: Sequence[Tensor], t: Sequence[Tensor], links: Sequence[Tensor]) -> Tensor:
    """Sum of the distances of features (B, D_s), mapped by links (D_t, D_s), from the teacher's (B, D_t)."""
    distances = [torch.linalg.matrix_norm(f @ w.T - g) for f, g, w in zip(s, t, links, strict=True)]
    return torch.stack(distances).sum()


def orthogonal_loss(link: Tensor) -> Tensor:
    """Distance of W W^T and of W^T W from the identity, for a link (D_t, D_s)."""
    products = link @ link.T, link.T @ link
    gaps = [torch.linalg.matrix_norm(p - torch.eye(len(p), dtype=p.dtype, device=p.device)) for p in products]
    return torch.stack(gaps).sum()


def soft_cross_entropy(s: Sequence[Tensor], t: Sequence[Tensor], temperature: float) -> Tensor:
    """Sum of H_T over pairs of logits (B, C): summed over classes, averaged over the batch, without T^2.

    The teacher's logits are constants.
    """
    pairs = [
        -((b / temperature).softmax(dim=1) * (a / temperature).log_softmax(dim=1)).sum() / len(a)
        for a, b in zip(s, t, strict=True)
    ]
    return torch.stack(pairs).sum()


@dataclass(frozen=True)
class TOFDParams(Params):
    """Hyper-parameters.

    Attributes:
        feature_weight: alpha, weight of the distances of features.
        orthogonal_weight: beta, weight of the links' distance from orthogonality.
        start_temperature: t0, the temperature's rise in 250 epochs.
        pairing: how features and logits are paired.
        orthogonal: the links with a beta term.
        teacher_mode: "train": the teacher normalises with the batch's statistics; "eval": with its own.
    """

    feature_weight: Annotated[NonNegativeFloat, WEIGHT] = 0.05
    orthogonal_weight: Annotated[NonNegativeFloat, WEIGHT] = 0.03
    start_temperature: NonNegativeFloat = 3.0
    pairing: Literal["shifted", "aligned"] = "shifted"
    orthogonal: Literal["all", "resized", "none"] = "all"
    teacher_mode: Literal["train", "eval"] = "train"


class TOFD(Method):
    """Distances of features and logits of all classifiers."""

    hyper = TOFDParams
    combines_with_kd = False
    term = "tofd"
    weight_range = None
    relates_samples = True
    student_features = frozenset({"branches", "embedding"})
    teacher_features = frozenset({"branches", "embedding"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(TOFDParams)
        self.stages_s, self.stages_t = len(setting.student_shapes.stages), len(teacher_shapes(setting).stages)
        s, t = self._classifiers(setting.student_shapes, teacher_shapes(setting))
        pairs = zip(s.features, t.features, strict=False)
        self.link = nn.ModuleList(nn.Linear(f.shape[1], g.shape[1], bias=False) for f, g in pairs)

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse networks without branches, and a teacher with fewer than the student."""
        for who, shapes in (("student", student_shapes), ("teacher", teacher_shapes)):
            if not shapes.branches:
                return f"the {who} has no branches"
        if len(teacher_shapes.branches) < len(student_shapes.branches):
            return "the teacher has fewer branches than the student"
        return None

    def main_stage(self) -> Stage:
        """The main stage, with the teacher in ``teacher_mode``."""
        return replace(super().main_stage(), teacher_mode=self.params.teacher_mode)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The whole loss but the first classifier's cross-entropy."""
        s, t = self._classifiers(student, teacher)
        used = len(s.features)
        temperature = 1 + self.params.start_temperature / RISE * batch.epoch
        soft = soft_cross_entropy(s.logits[:used], t.logits[:used], temperature)
        hard = [F.cross_entropy(logits, batch.labels) for logits in s.logits[1:used]]
        links = list(self.link.parameters())
        loss = soft + self.params.feature_weight * feature_loss(s.features, t.features[:used], links)
        constraints = [orthogonal_loss(link) for link in links if self._is_constrained(link)]
        return sum(hard, start=loss) + self.params.orthogonal_weight * sum(constraints)

    def _classifiers(self, student: Outputs, teacher: Outputs) -> tuple[Classifiers, Classifiers]:
        return (
            deepest_first(student, self.stages_s, self.params.pairing),
            deepest_first(teacher, self.stages_t, self.params.pairing),
        )

    def _is_constrained(self, weight: Tensor) -> bool:
        which = self.params.orthogonal
        return which == "all" or (which == "resized" and weight.shape[0] != weight.shape[1])
