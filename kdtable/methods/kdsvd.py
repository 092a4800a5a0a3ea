"""KDSVD: Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.

A feature map is decomposed per sample as X (HW, C) = U S V^T. Of the teacher the first k = 1 right singular vectors
are kept. Each is paired with the one of the student's first k + 3 vectors that has the largest |cosine|, with its sign
adjusted. Vectors v of consecutive taps are compared through a radial basis function:

    R_i[p, q] = exp(-(v_i[p] - v_{i-1}[q])^2 / 8),   loss = sum over taps from the second of sum (R_s - R_t)^2 / B

As in the code of the CRD benchmark, which publishes no result and no weight for it; the weight 10 is a public
derivative's (zju-vipa/KamalEngine). Channels must agree at every tap.

Departures: the sign of a singular vector is arbitrary, and the loss depends on it. Here the largest entry of every
vector is positive, so that the loss does not depend on the library. Where singular values coincide (equal or zero
features) the vectors have no derivative, and the published form's gradient is NaN or infinite; here such a sample gets
no gradient from that tap. The vectors are eigenvectors of float64 Gram matrices, all samples' at once: a GPU decomposes
many small matrices one by one otherwise. Memory: R has C_i C_{i-1} numbers per sample, which may exceed the features.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method
from kdtable.methods.parts.adaptors import unequal_channels
from kdtable.models.outputs import Outputs

VECTORS = 1
MORE_OF_STUDENT = 3
WIDTH = 8.0


def kdsvd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over consecutive taps of the squared difference of the vectors' correlations, averaged over samples.

    Args:
        student: feature maps (B, C, H, W), at least two, shallow to deep.
        teacher: the teacher's maps, constants, with the same channels at each tap.

    Raises:
        ValueError: the numbers of taps differ.
    """
    vectors = [_aligned(s, t) for s, t in zip(student, teacher, strict=True)]
    taps = []
    for (s_before, t_before), (s, t) in pairwise(vectors):
        gap = (_correlation(s, s_before) - _correlation(t, t_before)).square()
        taps.append(gap.sum() / len(gap))
    return sum(taps[1:], start=taps[0])


def _aligned(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Paired vectors (B, C, k) of both networks."""
    v_t, values = _singular(t, VECTORS)
    v_s, _ = _singular(s, VECTORS + MORE_OF_STUDENT)
    cosine = v_s.mT @ v_t
    best = cosine.abs() == cosine.abs().amax(dim=1, keepdim=True)
    v_s = v_s @ (best * cosine.sign()).to(v_s.dtype)
    return v_s * values, v_t * values


def _singular(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors (B, C, count), and their values (B, 1, count) scaled to unit length."""
    x = features.flatten(2).mT
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if x.requires_grad:
        x.register_hook(_without_undefined)  # type: ignore[no-untyped-call]
    exact = x if x.device.type == "mps" else x.double()
    wide = exact.shape[1] < exact.shape[2]
    squares, vectors = torch.linalg.eigh(exact @ exact.mT if wide else exact.mT @ exact)  # ascending
    values, vectors = squares[:, -count:].flip(1).clamp_min(0).sqrt(), vectors[:, :, -count:].flip(2)
    if wide:  # left singular vectors: a matrix of C instead of HW columns would have equal eigenvalues, zeros
        vectors = exact.mT @ vectors
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    vectors = F.normalize(vectors * largest.detach().sign(), dim=1)
    return vectors.to(x.dtype), F.normalize(values, dim=1).unsqueeze(1).to(x.dtype)


def _without_undefined(gradient: Tensor) -> Tensor:
    """The gradient, set to 0 for every sample where it is not finite."""
    return gradient.masked_fill(~gradient.isfinite().all(dim=(1, 2), keepdim=True), 0)


def _correlation(v: Tensor, before: Tensor) -> Tensor:
    return (-(v.unsqueeze(2) - before.unsqueeze(1)).square() / WIDTH).exp()


class KDSVD(Method):
    """Correlations of singular vectors of consecutive stage outputs."""

    version = 2  # 1 decomposed the features themselves
    term = "kdsvd"
    recordable = False  # a decomposition tells the host whether it converged
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps whose channels differ."""
        return unequal_channels(student_shapes.stages, teacher_shapes.stages)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The correlation loss of the stage outputs."""
        return kdsvd_loss(student.stages, teacher.stages)
