"""DML: Zhang et al., "Deep Mutual Learning", CVPR 2018.

The student and m peers of its size learn from each other; no teacher. Each of the m + 1 networks has the loss

    L_p = (1 - alpha) CE(s_p, y) + alpha / m * sum over the others q of KD_T(s_q, s_p)

with KD as in ``kd``. The DIH repository has alpha = 0.1 and T = 1 (the paper weighs both parts by 1). The other
networks' logits are constants in L_p. The method's term, of weight 1, is the sum of all L_p.

Departures: in the repository the networks take turns by whole epochs, and in the paper by batches; here all learn from
each batch at once, with one pass each. Peers start from the method's own random stream. The student that is measured
starts from the same weights as with every other method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable import models
from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Params
from kdtable.methods.parts.number_lists import check_fractions
from kdtable.methods.ranges import TEMPERATURE, WEIGHT
from kdtable.methods.soft_targets import kd_loss
from kdtable.models.network import Network
from kdtable.models.outputs import Outputs


def dml_loss(s: Tensor, peers: Sequence[Tensor], labels: Tensor, alpha: float, temperature: float) -> Tensor:
    """L_p of one network.

    Args:
        s: (B, C) its logits.
        peers: (B, C) logits of each other network; the gradient reaches them too, unless they are detached.
        labels: (B,) int64.
        alpha: weight of the peers' soft targets.
        temperature: T > 0.
    """
    soft = [kd_loss(s, peer, temperature) for peer in peers]
    hard = (1 - alpha) * F.cross_entropy(s, labels)
    return sum((alpha / len(peers) * loss for loss in soft), start=hard)


@dataclass(frozen=True)
class DMLParams(Params):
    """Hyper-parameters.

    Attributes:
        alpha: weight in [0, 1] of the peers' soft targets.
        temperature: their T.
        peers: number of peers.
        peer: name of the peers' network; "" for the student's.
    """

    alpha: Annotated[float, WEIGHT] = 0.1
    temperature: Annotated[PositiveFloat, TEMPERATURE] = 1.0
    peers: PositiveInt = 1
    peer: str = ""

    def __post_init__(self) -> None:
        """Raise `ValueError` for an alpha outside [0, 1], `BadRequest` for an unknown network."""
        check_fractions("alpha", str(self.alpha))
        if self.peer:
            models.canonical(self.peer)


class DML(Method):
    """Mutual learning with peers."""

    version = 2  # the peers of 1 ran outside autocast
    hyper = DMLParams
    combines_with_kd = False
    alone = "trains its peers by one loss with the student, labels included"
    term = "dml"
    weight_range = None
    student_terms = frozenset({"dml"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.student is None:
            raise ValueError("mutual learning builds peers of the student, and there is none")
        student = cast(Network, setting.student)
        self.params = setting.params(DMLParams)
        name = self.params.peer or student.name
        self.peers = nn.ModuleList(_like(student, name, setting) for _ in range(self.params.peers))

    def loss(self, name: str, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """See the base class; the own term reads no teacher."""
        if name != self.term:
            return super().loss(name, student, teacher, batch)
        peers = (self.setting.forward(peer, batch, frozenset()) for peer in self.peers)
        return self.mutual([student.logits, *(peer.logits for peer in peers)], batch)

    def mutual(self, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """The sum of the losses of all networks, given their logits (B, C)."""
        alpha, temperature = self.params.alpha, self.params.temperature
        targets = [one.detach() for one in logits]
        losses = [
            dml_loss(one, targets[:i] + targets[i + 1 :], batch.labels, alpha, temperature)
            for i, one in enumerate(logits)
        ]
        return sum(losses[1:], start=losses[0])


def _like(student: Network, name: str, setting: Setting) -> Network:
    """A fresh network that normalises its input as the student does."""
    mean, std = (None if x is None else x.flatten().tolist() for x in (student.input_mean, student.input_std))
    return models.build(name, setting.num_classes, mean=mean, std=std, image_size=setting.image_size)
