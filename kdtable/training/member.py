"""A member of a cohort: one student in training, with everything that is its own."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from kdtable.checkpoints.validation import (
    check_place,
    check_scaler,
    load_extra,
    load_optimizer,
    place_after,
)
from kdtable.data.stream import Batch
from kdtable.distributed import SINGLE_PROCESS, Ranks, shard_sizes
from kdtable.methods.base import Method, Stage
from kdtable.models.outputs import Outputs
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.classification import Accuracy, Classification, accuracy_of


class Diverged(Exception):
    """The loss of a run became NaN or infinite."""


class Member:
    """One student: network, method with its adaptors, optimiser, place in its stages, history.

    Args:
        run_id: identity of the run, for whoever keeps its results.
        student: the network, on its device and in its layout.
        method: built for this student, on the same device.
        task: gives batches and precision.
        test_loss: whether the loss on the test images is measured in the main stage.
    """

    def __init__(
        self, run_id: str, student: nn.Module, method: Method, task: Classification, *, test_loss: bool = False
    ) -> None:
        self.run_id = run_id
        self.student = student
        self.method = method
        self.task = task
        self._wants_test_loss = test_loss
        self.stages = method.stages()
        self.history: list[EpochRecord] = []
        self._position = 0
        self.epoch = 0
        self._begin_stage()

    def _begin_stage(self) -> None:
        recipe = self.stage.recipe
        self.optimizer = torch.optim.SGD(
            self.method.trained(self.stage, self.student),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            foreach=True,
        )
        self.scaler = self.task.precision.scaler()

    @property
    def stage(self) -> Stage:
        """The stage that the next epoch belongs to; the last one when all is done."""
        return self.stages[min(self._position, len(self.stages) - 1)]

    @property
    def done(self) -> bool:
        """Whether all stages are over."""
        return self._position == len(self.stages)

    @property
    def next_epoch(self) -> tuple[str, int]:
        """Stage name and number of the epoch that this member trains next."""
        return self.stage.name, self.epoch + 1

    @property
    def sweep_limit(self) -> int | None:
        """How many training images the method wants to be shown before the next epoch; ``None`` for no sweep."""
        return self.method.sweep_before(self.stage, self.epoch + 1)

    def begin_sweep(self) -> None:
        """Put the student in eval mode, and let the method forget what it was shown before."""
        self.student.eval()
        self.method.begin_sweep()

    @torch.no_grad()
    def observe(self, batch: Batch, teacher: Outputs | None) -> None:
        """Show the method what both networks make of a batch of a sweep."""
        self.method.observe(self._forward(batch), teacher, batch)

    def end_sweep(self) -> None:
        """Let the method make use of what it was shown."""
        self.method.end_sweep()

    def begin_epoch(self) -> None:
        """Set the epoch's learning rate and clear its sums."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.recipe.lr_at(self.epoch + 1)
        self.method.set_modes(self.stage, self.student)
        self._waited = self.task.waited
        # Loss, images, hits, then one sum per term: kept on the device, read once an epoch.
        self._sums = torch.zeros(3 + len(self.stage.terms), dtype=self.task.sum_dtype, device=self.task.device)

    def step(self, batch: Batch, teacher: Outputs | None) -> None:
        """One optimiser step on a batch; ``teacher`` holds the teacher's outputs for it."""
        self.learn(batch, teacher)
        self.apply()

    def learn(self, batch: Batch, teacher: Outputs | None) -> None:
        """Sum the gradients of this process's share of a batch, one part after the other."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._alone:
            self._learn_part(batch, teacher)
            return
        self.method.begin_step(teacher, batch)
        for part, teacher_outputs in micro_batches(batch, teacher, self.task.ranks.accumulate):
            self._learn_part(part, teacher_outputs)

    def apply(self) -> None:
        """Add up the gradients of all processes, and update the student by them."""
        self.task.ranks.add_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self._update()

    @property
    def _alone(self) -> bool:
        return self.task.ranks.micro_batches == 1

    def _learn_part(self, batch: Batch, teacher: Outputs | None) -> None:
        # Whoever compares images waits for all processes' outputs: none must be missing.
        ranks = self.task.ranks if self.method.relates_samples else SINGLE_PROCESS
        outputs = ranks.agreed(lambda: self._forward(batch))
        losses = self._losses(outputs, teacher, batch)
        total = weighted_sum(losses, self.stage, self.epoch + 1)
        self._backward(total)
        self._account(batch, outputs, total, losses)

    def _losses(self, outputs: Outputs, teacher: Outputs | None, batch: Batch) -> list[Tensor]:
        """The stage's terms; of a share of a batch, what it adds to those of the batch."""
        names = [term.name for term in self.stage.terms]
        if self._alone:
            return [self._loss(name, outputs, teacher, batch) for name in names]
        ranks, share = self.task.ranks, len(batch.labels) / batch.whole
        whole = (outputs, teacher, batch)
        if self.method.relates_samples:
            sizes = shard_sizes(batch.whole, ranks.size)
            whole = (
                gather_outputs(outputs, ranks, sizes),
                teacher and gather_outputs(teacher, ranks, sizes),
                gather_batch(batch, ranks),
            )
        losses = []
        for name in names:
            if name in self.method.summed_terms:
                losses.append(self._loss(name, outputs, teacher, batch))
            elif self.method.relates_samples and name not in ("ce", "kd"):
                losses.append(self._loss(name, *whole) / ranks.size)  # every process has all of it
            else:
                losses.append(self._loss(name, outputs, teacher, batch) * share)
        return losses

    def _forward(self, batch: Batch) -> Outputs:
        return self.task.run(self.student, batch, self.stage.student_features)

    def _loss(self, name: str, outputs: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return self.method.loss(name, outputs, teacher, batch)

    def _backward(self, total: Tensor) -> None:
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @torch.no_grad()
    def _account(self, batch: Batch, outputs: Outputs, total: Tensor, losses: list[Tensor]) -> None:
        sums = torch.stack([x.detach().to(self._sums.dtype) for x in (total, *losses)]) * batch.whole
        self._sums[0] += sums[0]
        self._sums[1] += len(batch.labels)
        self._sums[2] += self.task.correct(outputs, batch)
        self._sums[3:] += sums[1:]

    @property
    def tests_loss(self) -> bool:
        """Whether the loss on the test images is asked for, of the main stage."""
        return self.stage.name == "main" and self._wants_test_loss

    def begin_evaluation(self) -> None:
        """End the epoch's training, and make the student and its method ready to be shown the test images.

        Raises:
            Diverged: the epoch's loss is not finite; the state is then worthless.
        """
        ranks = self.task.ranks
        loss, images, *sums = ranks.sum(self._sums).tolist()
        if not math.isfinite(loss):
            raise Diverged(self._divergence(sums[1:]))
        self._trained = [total / images for total in (loss, *sums)]
        ranks.share_buffers(self.student, self.method)
        self._waiting = self.task.waited - self._waited
        self.student.eval()
        self.method.eval()
        self.method.end_epoch(self.stage, self.epoch + 1, self.student, self._last_test_outputs)
        self._seen = 0
        self._hits = torch.zeros((), dtype=torch.int64, device=self.task.device)
        self._test_loss = torch.zeros((), dtype=self.task.sum_dtype, device=self.task.device)

    @torch.no_grad()
    def _last_test_outputs(self) -> tuple[Outputs, Batch]:
        """A few random test images, and what the student makes of them."""
        batch = self.task.last_test_batch(*self.next_epoch)
        return self._forward(batch), batch

    @torch.no_grad()
    def evaluate(self, batch: Batch, teacher: Outputs | None) -> None:
        """Look at test images; ``teacher`` holds the teacher's outputs for them, where a loss is asked for."""
        wanted = self.stage.student_features if self.tests_loss else frozenset[str]()
        outputs = self.task.run(self.student, batch, wanted | {"branches"})
        self._hits = self._hits + self.task.hits(outputs, batch)
        self._seen += batch.whole
        if self.tests_loss:
            total = weighted_sum(self._losses(outputs, teacher, batch), self.stage, self.epoch + 1)
            self._test_loss += total.to(self._test_loss.dtype) * batch.whole

    def end_epoch(self, started: float, members: int) -> EpochRecord:
        """Record what was trained and examined, and step on to the next epoch."""
        ranks = self.task.ranks
        accuracy = accuracy_of(ranks.sum(self._hits), self._seen)
        test_loss = float(ranks.sum(self._test_loss)) / self._seen if self.tests_loss else None
        if test_loss is not None and not math.isfinite(test_loss):
            test_loss = None
        self.epoch += 1
        record = self._record(accuracy, test_loss, started, members)
        self.history.append(record)
        if self.epoch == self.stage.recipe.epochs:
            self.advance()
        return record

    def advance(self) -> None:
        """Leave the current stage for the next one, which starts with a fresh optimiser."""
        self.optimizer.zero_grad(set_to_none=True)  # what the next stage does not train would keep its gradients
        self._position += 1
        if not self.done:
            self.epoch = 0
            self._begin_stage()

    def _record(self, accuracy: Accuracy, test_loss: float | None, started: float, members: int) -> EpochRecord:
        loss, top1, *terms = self._trained
        return EpochRecord(
            stage=self.stage.name,
            epoch=self.epoch,
            lr=self.stage.recipe.lr_at(self.epoch),
            train_loss=loss,
            train_top1=top1,
            test_top1=accuracy.top1,
            test_top5=accuracy.top5,
            seconds=time.perf_counter() - started,
            members=members,
            terms={term.name: value for term, value in zip(self.stage.terms, terms, strict=True)},
            branches=accuracy.branches,
            waited=self._waiting,
            test_loss=test_loss,
        )

    def _divergence(self, terms: list[float]) -> str:
        bad = [t.name for t, value in zip(self.stage.terms, terms, strict=True) if not math.isfinite(value)]
        kind = "NaN" if any(map(math.isnan, terms)) else "infinite"
        where = f"term {', '.join(bad)}" if bad else "their weighted sum"
        return f"the loss became {kind} in epoch {self.epoch + 1} of stage {self.stage.name} ({where})"

    def state(self) -> dict[str, Any]:
        """Everything that continues this run to the same bits; tensors and plain values only."""
        return {
            "run": self.run_id,
            "position": self._position,
            "epoch": self.epoch,
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": [asdict(record) for record in self.history],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave, by this or by another process.

        The student's and the method's tensors must have been compared with those that are here.

        Raises:
            Exception: of any kind; it is no state of this run. Nothing has changed then.
        """
        history = [EpochRecord(**record) for record in state["history"]]
        place = place_after(history, [(stage.name, stage.recipe.epochs) for stage in self.stages])
        check_place(state, place)
        before = self._position, self.epoch, self.optimizer, self.scaler
        try:
            self._position, self.epoch = place
            self._begin_stage()  # the last stage's optimiser, where all is done
            check_scaler(state["scaler"], self.scaler.state_dict())
            self.scaler.load_state_dict(state["scaler"])
            # A scaler may have skipped every step.
            load_optimizer(self.optimizer, state["optimizer"], moved=self.epoch > 0 and not self.scaler.is_enabled())
            load_extra(self.method, state["method"])
        except Exception:
            self._position, self.epoch, self.optimizer, self.scaler = before
            raise
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.history = history


def micro_batches(batch: Batch, teacher: Outputs | None, count: int) -> Iterator[tuple[Batch, Outputs | None]]:
    """A batch and the teacher's outputs for it in ``count`` parts, of which no two differ by more than one image."""
    start = 0
    for size in shard_sizes(len(batch.labels), count):
        chosen = slice(start, start + size)
        yield batch.part(chosen), teacher and teacher.part(chosen)
        start += size


def gather_outputs(outputs: Outputs, ranks: Ranks, sizes: Sequence[int]) -> Outputs:
    """The outputs for the whole batch, of which each process has a share."""
    return outputs.mapped(lambda share: ranks.gather(share, sizes))


def gather_batch(batch: Batch, ranks: Ranks) -> Batch:
    """The whole batch, of which each process has a share; its images are left out, since no method reads them."""
    sizes = shard_sizes(batch.whole, ranks.size)
    labels, index = (ranks.gather(rows, sizes) for rows in (batch.labels, batch.index))
    return Batch(batch.images[:0], labels, index, batch.epoch, None, batch.whole)


def weighted_sum(losses: list[Tensor], stage: Stage, epoch: int = 1) -> Tensor:
    """The stage's loss in an epoch of it. A term of weight 0 is multiplied, not skipped."""
    parts = [term.weight_at(epoch) * loss for term, loss in zip(stage.terms, losses, strict=True)]
    return sum(parts[1:], start=parts[0])
