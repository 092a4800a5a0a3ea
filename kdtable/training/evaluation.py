"""What a member is measured by after each epoch: the test set, and where it is asked for its loss."""

import math

import torch
from torch import Tensor

from kdtable.tasks.base import TaskBatch, TaskOutputs
from kdtable.training.step import Learner, weighted_sum


class Evaluation:
    """One pass of a student over the test set.

    Args:
        learner: whose student it is, in eval mode, and whose epoch has ended.
        with_loss: whether the stage's loss is measured besides.
    """

    def __init__(self, learner: Learner, with_loss: bool) -> None:
        task = learner.task
        self._learner, self._with_loss = learner, with_loss
        self._features = task.measured_features | (learner.stage.student_features if with_loss else frozenset())
        self._meter = task.meter("test")
        self._seen = 0
        self._loss: Tensor = torch.zeros((), dtype=task.sum_dtype, device=task.device)

    @torch.no_grad()
    def update(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Add a batch; ``teacher`` has the teacher's outputs for it, where a loss that reads them is asked for."""
        learner = self._learner
        outputs = learner.task.forward(learner.student, batch, self._features)
        self._meter.update(outputs, batch)
        if self._with_loss:
            total = weighted_sum(learner.losses(outputs, teacher, batch), learner.stage, learner.epoch)
            self._loss += total.to(self._loss.dtype) * batch.whole
            self._seen += batch.whole

    def result(self) -> tuple[dict[str, float], float | None]:
        """What the task measured, by name, and the loss; ``None`` where it was not asked for or is not finite."""
        ranks = self._learner.task.ranks
        self._meter.merge(ranks)
        if not self._with_loss:
            return self._meter.result(), None
        loss = float(ranks.all_reduce(self._loss)) / self._seen
        return self._meter.result(), loss if math.isfinite(loss) else None
