"""CRD: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020.

Student and teacher embeddings are mapped to 128 dimensions and scaled to unit length. A bank holds each network's past
embeddings. Each sample is contrasted with its positive and K negatives from other classes in the other network's bank
(equations 17 to 19 of the paper, as in the authors' code):

    a = exp(bank . e / tau) / Z,   r = K / N,   eps = 1e-7
    L = -1/B * sum over samples of [ ln(a_0 / (a_0 + r + eps)) + sum over negatives of ln(r / (a_k + r + eps)) ]

The loss is the sum of two halves: the student as anchor against the teacher's bank, and the reverse. The second half
trains the teacher's embedding only. Z is N times the mean score of the first batch, and then fixed. After each forward
pass the batch's rows in both banks become normalise(m * old + (1 - m) * new).

The benchmark's weight is 0.8 with K = 16384, tau = 0.07, m = 0.5. Our tau is 0.07 exactly; the reference's is its
float32 neighbour (4e-9 away). If K exceeds the number of samples of other classes, draws repeat.

Memory: each half holds the scores against the whole bank, (B, N), and the gathered ones, (B, 1 + K). That is an eighth
of the (B, K, 128) rows that a gather of embeddings would move.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from kdtable import seeding
from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Params
from kdtable.methods.parts.adaptors import given, teacher_shapes
from kdtable.methods.parts.negatives import ClassNegatives
from kdtable.methods.ranges import Range
from kdtable.models.outputs import Outputs

EPS = 1e-7


class Embedding(nn.Module):
    """An affine map, then scaling to unit length without eps."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in) to (B, out) of unit length."""
        embedded: Tensor = self.linear(features)
        return embedded / embedded.square().sum(dim=1, keepdim=True).sqrt()


def contrast_loss(scored: Tensor, noise: float) -> Tensor:
    """Noise-contrastive loss of one half.

    Args:
        scored: (B, 1 + K) normalised scores, column 0 the positive.
        noise: r = K / N, the noise density times K.
    """
    positive = scored[:, 0]
    # ln(r / (x + r + eps)) as -ln(x / r + 1 + eps / r): three passes over (B, 1 + K) numbers. log1p would keep more
    # digits of small scores than the reference does, but costs twelve times as much as log on a CPU.
    surprise = torch.add(1 + EPS / noise, scored, alpha=1 / noise).log()
    log_positive = (positive / (positive + noise + EPS)).log() + surprise[:, 0]
    return (surprise.sum() - log_positive.sum()) / scored.shape[0]


def scores(anchor: Tensor, bank: Tensor, contrast: Tensor, tau: float) -> Tensor:
    """exp(bank . anchor / tau), before normalisation.

    Multiplies with the whole bank and gathers scores: (B, N) numbers, where a gather of rows would move (B, K, dim).

    Args:
        anchor: (B, dim) embeddings of unit length.
        bank: (N, dim) rows of the other network.
        contrast: (B, 1 + K) rows to score.
        tau: temperature.
    """
    return ((anchor @ bank.T).gather(1, contrast) / tau).exp()


@dataclass(frozen=True)
class CRDParams(Params):
    """Hyper-parameters.

    Attributes:
        dim: dimensions of the space in which embeddings are contrasted.
        negatives: K, per sample.
        tau: temperature of the scores.
        bank_momentum: m in [0, 1), the weight of the old row in a bank's update.
        mode: the positive: "exact" is the sample itself, "relax" a random sample of its class.
    """

    dim: PositiveInt = 128
    negatives: PositiveInt = 16384
    tau: Annotated[PositiveFloat, Range(0.02, 0.5)] = 0.07
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mode: Literal["exact", "relax"] = "exact"


class CRD(Method):
    """Contrastive representation distillation on the embeddings."""

    hyper = CRDParams
    term = "crd"
    unmixed = "its banks have a row for each training image, and a mixed image is none of them"
    relates_samples = True
    of_training_images = True  # their rows of the banks are read and updated
    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"embedding"})

    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.params = setting.params(CRDParams)
        dim, self.samples = self.params.dim, len(setting.labels)
        self.embed_s = Embedding(given(setting.student_shapes.embedding).shape[1], dim)
        self.embed_t = Embedding(given(teacher_shapes(setting).embedding).shape[1], dim)
        bound = math.sqrt(3 / dim)  # the expected squared length of a row is 1
        for bank in ("memory_student", "memory_teacher"):
            self.register_buffer(bank, torch.empty(self.samples, dim).uniform_(-bound, bound))
        for z in ("z_student", "z_teacher"):  # NaN until the first batch sets it
            self.register_buffer(z, torch.tensor(math.nan))
        self.negatives = ClassNegatives(setting.labels, self.params.negatives, setting.generator)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Both halves of the contrastive loss; updates the banks."""
        positive = batch.index if self.params.mode == "exact" else self.negatives.same_class(batch.index)
        contrast = torch.cat([positive.unsqueeze(1), self.negatives.draw(batch.index)], dim=1)
        return self.contrast(given(student.embedding), given(teacher.embedding), batch.index, contrast)

    def contrast(self, student: Tensor, teacher: Tensor, index: Tensor, contrast: Tensor) -> Tensor:
        """The loss for given contrast indices.

        Args:
            student: (B, D_s) embeddings; the first half sends them a gradient.
            teacher: (B, D_t) embeddings, constants.
            index: (B,) the samples' own rows, which both banks update.
            contrast: (B, 1 + K) rows to score, column 0 the positive.
        """
        e_s, e_t = self.embed_s(student), self.embed_t(teacher)
        # Copies, because the rows of the banks change before the backward pass reads them.
        a = scores(e_s, self.memory_teacher.clone(), contrast, self.params.tau)
        c = scores(e_t, self.memory_student.clone(), contrast, self.params.tau)
        self._fix_normaliser(self.z_student, a)
        self._fix_normaliser(self.z_teacher, c)
        noise = self.params.negatives / self.samples
        # Clones, because the next step writes to the buffers that this step's graph would hold.
        loss = contrast_loss(a / self.z_student.clone(), noise) + contrast_loss(c / self.z_teacher.clone(), noise)
        self._update(self.memory_student, index, e_s)
        self._update(self.memory_teacher, index, e_t)
        return loss

    @torch.no_grad()
    def _fix_normaliser(self, z: Tensor, scored: Tensor) -> None:
        z.copy_(torch.where(z.isnan(), self.samples * scored.mean(), z))

    @torch.no_grad()
    def _update(self, bank: Tensor, index: Tensor, embedding: Tensor) -> None:
        kept = self.params.bank_momentum
        row = kept * bank[index] + (1 - kept) * embedding
        bank[index] = row / row.square().sum(dim=1, keepdim=True).sqrt()

    def get_extra_state(self) -> dict[str, object]:
        """The state of the generator of negatives, so that a resumed run draws the same."""
        generator = self.setting.generator
        return {"device": generator.device.type, "state": generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned.

        A generator cannot continue the stream of another kind of device: there it begins a new stream.
        """
        generator = self.setting.generator
        if state["device"] == generator.device.type:
            generator.set_state(state["state"])
        else:
            generator.manual_seed(seeding.derive("continued", generator.initial_seed()))
