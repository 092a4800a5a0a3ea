"""Evaluate a student on the test set or on held-out images: the task's metrics, and optionally the loss."""

import math

import torch
from torch import Tensor

from kdtable.data.stream import PartName
from kdtable.recipes.metrics import VALIDATION
from kdtable.tasks.base import ClosingMeter, TaskBatch, TaskOutputs
from kdtable.training.step import Learner, weighted_sum


class Evaluation:
    """One pass of a student over a part of the data set.

    Args:
        learner: holds the student, or its moving average, in eval mode, after an epoch of training.
        with_loss: whether to measure the stage's loss too.
        closing: measures what is measured in a run's last epoch only.
        part: the test set, or the held-out images, whose metrics are named ``validation-...``.
    """

    def __init__(
        self, learner: Learner, with_loss: bool, closing: ClosingMeter | None = None, part: PartName = "test"
    ) -> None:
        task = learner.task
        self._learner, self._with_loss = learner, with_loss
        self._features = task.measured_features | learner.method.measured_features
        self._features |= learner.stage.student_features if with_loss else frozenset()
        self._meter, self._closing = task.meter_of(part, learner.measured), closing
        self._prefix = VALIDATION if part == "validation" else ""
        self._seen = 0
        self._loss: Tensor = torch.zeros((), dtype=task.sum_dtype, device=task.device)

    @torch.no_grad()
    def update(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Add a batch; ``teacher`` holds the teacher's outputs for it where loss or closing meter read them."""
        learner = self._learner
        outputs = learner.task.forward(learner.measured, batch, self._features)
        measured = learner.method.predicted(outputs)
        self._meter.update(measured, batch)
        if self._closing is not None:
            self._closing.update(measured, teacher, batch)
        if self._with_loss:
            total = weighted_sum(learner.losses(outputs, teacher, batch), learner.stage, learner.epoch)
            self._loss += total.to(self._loss.dtype) * batch.whole
            self._seen += batch.whole

    def result(self) -> tuple[dict[str, float], float | None]:
        """The task's metrics by name, and the loss; ``None`` if it is not measured or not finite."""
        ranks = self._learner.task.ranks
        self._meter.merge(ranks)
        metrics = self._meter.result()
        if self._closing is not None:
            self._closing.merge(ranks)
            metrics |= self._closing.result()
        metrics = {f"{self._prefix}{name}": value for name, value in metrics.items()}
        if not self._with_loss:
            return metrics, None
        loss = float(ranks.all_reduce(self._loss)) / self._seen
        return metrics, loss if math.isfinite(loss) else None
