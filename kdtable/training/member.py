"""A member of a cohort: one student in training, with everything that is its own."""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Stage
from kdtable.models.outputs import Outputs
from kdtable.training.task import Accuracy, Classification


class Diverged(Exception):
    """The loss of a run became NaN or infinite."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What is measured of one epoch. Accuracies are shares in [0, 1]; ``seconds`` is wall time in company.

    ``branches`` has the test top-1 of each of the student's extra classifiers.
    """

    stage: str
    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    test_top1: float
    test_top5: float
    seconds: float
    members: int
    terms: dict[str, float] = field(default_factory=dict)
    branches: tuple[float, ...] = ()


class Member:
    """One student: network, method with its adaptors, optimiser, place in its stages, history.

    Args:
        run_id: identity of the run, for whoever keeps its results.
        student: the network, on its device and in its layout.
        method: built for this student, on the same device.
        task: gives batches and precision.
    """

    def __init__(self, run_id: str, student: nn.Module, method: Method, task: Classification) -> None:
        self.run_id = run_id
        self.student = student
        self.method = method
        self.task = task
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

    def begin_epoch(self) -> None:
        """Set the epoch's learning rate and clear its sums."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.recipe.lr_at(self.epoch + 1)
        self.method.set_modes(self.stage, self.student)
        # Loss, images, hits, then one sum per term: kept on the device, read once an epoch.
        self._sums = torch.zeros(3 + len(self.stage.terms), dtype=self.task.sum_dtype, device=self.task.device)

    def step(self, batch: Batch, teacher: Outputs | None) -> None:
        """One optimiser step on a batch; ``teacher`` holds the teacher's outputs for it."""
        outputs = self._forward(batch)
        losses = [self._loss(term.name, outputs, teacher, batch) for term in self.stage.terms]
        total = weighted_sum(losses, self.stage)
        self._backward(total)
        self._update()
        self._account(batch, outputs, total, losses)

    def _forward(self, batch: Batch) -> Outputs:
        return self.task.run(self.student, batch, self.stage.student_features)

    def _loss(self, name: str, outputs: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return self.method.loss(name, outputs, teacher, batch)

    def _backward(self, total: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]

    def _update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @torch.no_grad()
    def _account(self, batch: Batch, outputs: Outputs, total: Tensor, losses: list[Tensor]) -> None:
        count = len(batch.labels)
        sums = torch.stack([x.detach().to(self._sums.dtype) for x in (total, *losses)]) * count
        self._sums[0] += sums[0]
        self._sums[1] += count
        self._sums[2] += self.task.correct(outputs, batch)
        self._sums[3:] += sums[1:]

    def end_epoch(self, started: float, members: int) -> EpochRecord:
        """Measure the student on the test set and step on to the next epoch.

        Raises:
            Diverged: the epoch's loss is not finite; the state is then worthless.
        """
        loss, images, hits, *terms = self._sums.tolist()
        if not math.isfinite(loss):
            raise Diverged(self._divergence(terms))
        accuracy = self.task.evaluate(self.student)
        self.epoch += 1
        record = self._record(accuracy, loss / images, hits / images, [t / images for t in terms], started, members)
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

    def _record(
        self, accuracy: Accuracy, loss: float, top1: float, terms: list[float], started: float, members: int
    ) -> EpochRecord:
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
        """Continue from what :meth:`state` gave."""
        self._position, self.epoch = state["position"], state["epoch"]
        self._begin_stage()  # the last stage's optimiser, where all is done
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = [EpochRecord(**record) for record in state["history"]]


def weighted_sum(losses: list[Tensor], stage: Stage) -> Tensor:
    """The stage's loss. A term of weight 0 is multiplied, not skipped."""
    parts = [term.weight * loss for term, loss in zip(stage.terms, losses, strict=True)]
    return sum(parts[1:], start=parts[0])
