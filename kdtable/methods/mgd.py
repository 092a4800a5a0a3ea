"""MGD: Yue, Deng and Zhou, "Matching Guided Distillation", ECCV 2020, arXiv 2008.09958.

Taps lie before the activation. Each student channel owns g teacher channels (``assignment``), which a reducer turns
into one (``reducers``). On stage i of L, x is the student's tap after a batch norm of the method's own, t the reduced
teacher's tap, and q = max(t, margin):

    P_i = sum over all elements of (x - q)^2 where x > q or q > 0
    L   = sum over stages of P_i / 2^(L - i), divided by the nominal batch size and by ``loss_factor`` (1e4)

Channels are matched before the first epoch and then every ``update_every`` epochs (or after the epochs in
``update_after``). Matching reads the taps of about ``sweep_images`` training images, of both networks in eval mode and
without the method's batch norm. The margin of a teacher's channel comes from the batch norm in front of its tap.

Readings: ``margins_from`` = "teacher", or "default" for the margins of an untrained batch norm: the released code of
the unsupervised runs computed them before it loaded the teacher. ``student_taps`` = "preacts", or "stages" where the
released student's activation overwrote its tap in place; a list has one per stage. Stages in ``ignore`` (from 0) add
nothing, but still count in the powers of 2. KD is a term of its own (T = 1.5).

The released code matches once more after the last epoch, to no effect. Until March 2021 its "amp" took the largest
value, not the largest magnitude.

For "rd" every rank draws for the whole batch, so that an image gets the same draw on any number of ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Norms, Setting, Stage
from kdtable.methods.objective import Params, as_kind
from kdtable.methods.parts.adaptors import teacher_shapes, unequal_number
from kdtable.methods.parts.assignment import channel_cost, check_finite, matched
from kdtable.methods.parts.mgd_settings import Matching
from kdtable.methods.parts.random_draws import (
    Draws,
    MicroBatchDraws,
    draws_below,
    generator_state,
    restore_generator,
)
from kdtable.methods.parts.reducers import margins, reduced, reduced_margin
from kdtable.models.network import Network
from kdtable.models.outputs import Outputs


def partial_loss(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    """P: the sum of squared distances from the clipped teacher q, where the student is above q or q is positive.

    Args:
        s: (B, C, H, W) of the student.
        t: (B, C, H, W) of the teacher, a constant.
        margin: (1, C, 1, 1) lower bound of the teacher's values.
    """
    q = torch.maximum(t, margin)
    return torch.where((s > q) | (q > 0), (s - q).square(), 0).sum()


class MGD(Method):
    """Partial distances of matched channels of all stages."""

    hyper: ClassVar[type[Params]] = Matching
    term = "mgd"
    # The default of ``student_taps``; main_stage asks for what the run sets.
    student_features = frozenset({"preacts"})
    teacher_features = frozenset({"preacts"})
    summed_terms = frozenset({"mgd"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.matching = setting.params(Matching)
        teacher = teacher_shapes(setting)
        if reason := self.matching.unmatchable(setting.student_shapes, teacher):
            raise ValueError(reason)
        self.count = len(teacher.preacts)
        self.used = self.matching.used(self.count)
        self.taps = self.matching.taps(self.count)
        pairs = list(zip(self._student(setting.student_shapes), teacher.preacts, strict=True))
        self.adaptors = nn.ModuleList(nn.BatchNorm2d(s.shape[1]) for s, _ in pairs)
        self._start_buffers(pairs, self._norms(setting.teacher, teacher))
        self.is_matched = False
        self._ahead = MicroBatchDraws()
        self._costs: dict[int, Tensor] = {}
        self._images = 0

    def _norms(self, teacher: nn.Module | None, shapes: Outputs) -> Sequence[nn.BatchNorm2d | None]:
        if self.matching.margins_from != "teacher":
            return [None] * self.count
        if teacher is None:
            raise ValueError("the margins are of the teacher's batch norms, and there is no teacher")
        norms = cast(Network, teacher).tap_norms()
        if reason := self.matching.without_norms(shapes, norms):
            raise ValueError(reason)
        return norms

    def _start_buffers(self, pairs: Sequence[tuple[Tensor, Tensor]], norms: Sequence[nn.BatchNorm2d | None]) -> None:
        for stage in self.used:
            students, teachers = (x.shape[1] for x in pairs[stage])
            norm = norms[stage] or nn.BatchNorm2d(teachers)
            self.register_buffer(f"margin{stage}", margins(norm.weight, norm.bias))
            owned = 1 if self.matching.reducer == "sm" else teachers // students
            self.register_buffer(f"groups{stage}", torch.zeros(students, owned, dtype=torch.int64))

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """Refuse taps that cannot be paired."""
        return unequal_number(student_shapes.preacts, teacher_shapes.preacts)

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """Refuse taps that cannot be paired, and used stages without matching shapes or without batch norms."""
        matching = as_kind(params, Matching)
        return (
            cls.inapplicable(student_shapes, teacher_shapes)
            or matching.unmatchable(student_shapes, teacher_shapes)
            or matching.without_norms(teacher_shapes, norms())
        )

    def main_stage(self) -> Stage:
        """The main stage, with the student features of ``student_taps``."""
        return replace(super().main_stage(), student_features=frozenset(self.taps))

    def sweep_before(self, stage: Stage, epoch: int) -> int | None:
        """``sweep_images`` before epochs in which matching is due, if the stage has the method's term."""
        if self.term not in (term.name for term in stage.terms) or not self.matching.is_due(epoch):
            return None
        return self.matching.sweep_images

    def begin_sweep(self) -> None:
        """Clear the costs of an earlier sweep."""
        self._costs, self._images = {}, 0

    def observe(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        """Add a batch's costs to the sums (float64, except on MPS)."""
        if teacher is None:
            raise ValueError("channels are matched with a teacher's, and there is none")
        pairs = list(zip(self._student(student), teacher.preacts, strict=True))
        for stage in self.used:
            cost = channel_cost(*pairs[stage])
            cost = cost if cost.device.type == "mps" else cost.double()
            self._costs[stage] = self._costs.get(stage, 0) + cost
        self._images += len(batch.labels)

    def end_sweep(self) -> None:
        """Match the channels by the mean costs over all ranks.

        Raises:
            ValueError: the sweep had no images, or a feature map is not finite.
        """
        if self._images == 0:
            raise ValueError("there is nothing to match channels by: the sweep showed no images")
        ranks = self.setting.ranks
        images = int(ranks.all_reduce(torch.tensor(self._images)))
        for stage, cost in self._costs.items():
            mean = ranks.all_reduce(cost) / images
            check_finite(mean)  # on every rank, else the others would wait for rank 0
            groups = ranks.broadcast(matched(mean, alone=self.matching.reducer == "sm") if ranks.rank == 0 else None)
            self.get_buffer(f"groups{stage}").copy_(groups)  # in place: a CUDA graph may read this buffer
        self.is_matched = True
        self.begin_sweep()

    def begin_step(self, teacher: Outputs | None, batch: Batch) -> None:
        """Draw for this rank's shard, whose micro-batches follow one by one."""
        self._ahead = MicroBatchDraws()
        if teacher is not None and self.is_matched and self.matching.reducer == "rd":
            draws = {stage: self._draws(stage, teacher.preacts[stage], batch) for stage in self.used}
            self._ahead = MicroBatchDraws(draws)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The weighted sum of the stages' partial losses, divided by the nominal batch size.

        Raises:
            ValueError: no sweep has matched the channels yet.
        """
        losses = self.partials(student, teacher, batch)
        weighted = [loss / 2 ** (self.count - 1 - stage) for stage, loss in zip(self.used, losses, strict=True)]
        return torch.stack(weighted).sum() / (self.setting.recipe.batch_size * self.matching.loss_factor)

    def partials(self, student: Outputs, teacher: Outputs, batch: Batch) -> list[Tensor]:
        """The partial loss of each used stage.

        Raises:
            ValueError: no sweep has matched the channels yet.
        """
        if not self.is_matched:
            raise ValueError("no sweep has matched the channels yet")
        s, t = self._student(student), teacher.preacts
        ahead = self._ahead.next(len(batch.labels))
        losses = []
        for stage in self.used:
            drawn = self._draws(stage, t[stage], batch) if self.matching.reducer == "rd" and not ahead else ()
            losses.append(self._partial(stage, s[stage], t[stage], *ahead.get(stage, drawn)))
        return losses

    def _partial(
        self, stage: int, s: Tensor, t: Tensor, values: Tensor | None = None, channels: Tensor | None = None
    ) -> Tensor:
        groups, margin = self.get_buffer(f"groups{stage}"), self.get_buffer(f"margin{stage}")
        return partial_loss(
            self.adaptors[stage](s),
            reduced(t, groups, self.matching.reducer, values),
            reduced_margin(margin, groups, self.matching.reducer, channels),
        )

    def _draws(self, stage: int, t: Tensor, batch: Batch) -> Draws:
        """Random choices among the owned teacher channels: per position (B, C_s, 1, H, W) and per margin (C_s, 1)."""
        students, owned = self.get_buffer(f"groups{stage}").shape
        return draws_below(owned, (students, 1, *t.shape[2:]), (students, 1), batch, self.setting)

    def _student(self, student: Outputs) -> list[Tensor]:
        return [getattr(student, tap)[stage] for stage, tap in enumerate(self.taps)]

    def get_extra_state(self) -> dict[str, object]:
        """Whether the channels are matched, and the generator's state."""
        return {"is_matched": self.is_matched, **generator_state(self.setting.generator)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self.is_matched = bool(state["is_matched"])
        restore_generator(self.setting.generator, state)
