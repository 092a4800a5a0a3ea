"""FT: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018.

A paraphraser, an auto-encoder of the teacher's last feature map, gives factors F_t; a translator gives the student's
F_s. With a(F) the mean over channels of F^2, flattened and scaled to unit length per sample:

    loss = mean |a(F_s) - a(F_t)|

over samples and positions. For another exponent p2 it is the mean of (a(F_s) - a(F_t))^p2. If sizes differ, the larger
factor is average-pooled.

As the CRD benchmark runs it: half as many factor channels as the teacher has, weight 200. The stage "init" of 30
epochs trains the paraphraser alone on the mean squared error of its reconstruction. Its rate is constant: the run's, or
0.01 if the student is a CIFAR ResNet or a wide ResNet. In the main stage the paraphraser is frozen and the translator
is trained beside the student. The reference computes the paraphraser's gradient there and drops it.

Memory: the paraphraser is quadratic in the teacher's channels (132 million parameters for ResNet50's 2048). In the
initial stage its gradients exceed the features.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting, Stage
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import teacher_shapes
from kdtable.methods.parts.pooling import pool_to_smaller
from kdtable.models.outputs import Outputs

SLOPE = 0.1


def factor_loss(s: Tensor, t: Tensor, p2: float = 1) -> Tensor:
    """Mean difference of two factors' maps, to the power ``p2``.

    Args:
        s: (B, C_s, H, W) the student's factor.
        t: (B, C_t, H, W) the teacher's, a constant.
        p2: exponent; 1 takes the absolute difference.
    """
    s, t = pool_to_smaller(s, t)
    gap = _factor_map(s) - _factor_map(t)
    return gap.abs().mean() if p2 == 1 else gap.pow(p2).mean()


def _factor_map(factor: Tensor) -> Tensor:
    return F.normalize(factor.square().mean(dim=1).flatten(1), dim=1)


def _layers(kind: type[nn.Module], widths: tuple[int, int, int, int], batch_norm: bool) -> Iterator[nn.Module]:
    """Three 3x3 convolutions; an identity stands in for a missing batch norm, to keep the reference's keys."""
    for c_in, c_out in pairwise(widths):
        yield kind(c_in, c_out, 3, padding=1)
        yield nn.BatchNorm2d(c_out) if batch_norm else nn.Identity()
        yield nn.LeakyReLU(SLOPE)


class Paraphraser(nn.Module):
    """The teacher's auto-encoder, from ``channels`` to ``factors`` channels and back."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_layers(nn.Conv2d, (channels, channels, factors, factors), False))
        self.decoder = nn.Sequential(*_layers(nn.ConvTranspose2d, (factors, factors, channels, channels), False))

    def forward(self, features: Tensor) -> Tensor:
        """The reconstruction of (B, channels, H, W)."""
        reconstruction: Tensor = self.decoder(self.encoder(features))
        return reconstruction


class Translator(nn.Module):
    """The student's encoder, from ``channels`` to ``factors`` channels."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_layers(nn.Conv2d, (channels, channels, factors, factors), True))

    def forward(self, features: Tensor) -> Tensor:
        """The factor of (B, channels, H, W)."""
        factor: Tensor = self.encoder(features)
        return factor


@dataclass(frozen=True)
class FTParams(Params):
    """Hyper-parameters.

    Attributes:
        init_lr: learning rate of the initial stage; ``None`` for the run's.
    """

    init_lr: PositiveFloat | None = None


class FT(Method):
    """Factors of the last stage output."""

    hyper = FTParams
    term = "ft"
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})
    early_teacher_features = frozenset({"stages"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        channels = teacher_shapes(setting).stages[-1].shape[1]
        self.translator = Translator(setting.student_shapes.stages[-1].shape[1], channels // 2)
        self.paraphraser = Paraphraser(channels, channels // 2)

    def stages(self) -> tuple[Stage, ...]:
        """The paraphraser's stage and the main one."""
        early = self.early_stage("init", "reconstruction", frozenset(), self.setting.params(FTParams).init_lr)
        return (early, self.main_stage())

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        """The paraphraser in "init"; then the student and the translator."""
        if stage.name != "main":
            return list(self.paraphraser.parameters())
        return [*student.parameters(), *self.translator.parameters()]

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        """Put in train mode what is trained, and in eval mode the rest."""
        main = stage.name == "main"
        student.train(main)
        self.translator.train(main)
        self.paraphraser.train(not main)

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Batch], Tensor]]:
        """The terms of both stages."""
        return {"ft": self.distillation, "reconstruction": self.reconstruction}

    def reconstruction(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Mean squared error of the paraphraser on the teacher's last stage output."""
        return F.mse_loss(self.paraphraser(teacher.stages[-1]), teacher.stages[-1])

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The factor loss of the last stage output."""
        with torch.no_grad():
            target = self.paraphraser.encoder(teacher.stages[-1])
        return factor_loss(self.translator(student.stages[-1]), target)
