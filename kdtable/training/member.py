"""A member of a cohort: one student in training, with everything that is its own."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdtable.methods.base import Method, Stage
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.base import Task, TaskBatch, TaskOutputs
from kdtable.training.evaluation import Evaluation
from kdtable.training.state import load_networks, load_optimisation, read_place, state_of
from kdtable.training.step import Learner


class Member:
    """One student: network, method with its adaptors, optimiser, place in its stages, history.

    Args:
        run_id: identity of the run, for whoever keeps its results.
        student: the network, on its device and in its layout.
        method: built for this student, on the same device.
        task: of the stages that name none.
        task_of: gives the task that a stage names, one object for all members of a cohort.
        test_loss: whether the loss on the test images is measured in the main stage.
    """

    def __init__(
        self,
        run_id: str,
        student: nn.Module,
        method: Method,
        task: Task,
        task_of: Callable[[str], Task] | None = None,
        *,
        test_loss: bool = False,
    ) -> None:
        self.run_id = run_id
        self.student = student
        self.method = method
        self._wants_test_loss = test_loss
        self.stages = method.stages()
        self.history: list[EpochRecord] = []
        self._task, self._task_of = task, task_of
        self._position = 0
        self.epoch = 0
        self._begin_stage()

    def _begin_stage(self) -> None:
        self.learner = Learner(self.student, self.method, self.task, self.stage)

    @property
    def stage(self) -> Stage:
        """The stage that the next epoch belongs to; the last one when all is done."""
        return self.stages[min(self._position, len(self.stages) - 1)]

    @property
    def task(self) -> Task:
        """The task of that stage."""
        return self._task_of(self.stage.task) if self.stage.task and self._task_of else self._task

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The stage's."""
        return self.learner.optimizer

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
    def observe(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Show the method what both networks make of a batch of a sweep."""
        outputs = self.learner.forward(batch)
        self.method.observe(outputs, self.learner.teacher_for(outputs, teacher, batch), batch)

    def begin_epoch(self) -> None:
        """Set the epoch's learning rate and clear its sums."""
        self.learner.begin_epoch(self.epoch + 1)
        self._waited = self.learner.task.waited

    def step(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """One optimiser step on a batch; ``teacher`` holds the teacher's outputs for it."""
        self.learner.step(batch, teacher)

    @property
    def tests_loss(self) -> bool:
        """Whether the loss on the test images is asked for, of the main stage."""
        return self.stage.name == "main" and self._wants_test_loss

    def begin_evaluation(self) -> None:
        """End the epoch's training, and make the student and its method ready to be shown the test images.

        Raises:
            Diverged: the epoch's loss is not finite; the state is then worthless.
        """
        self._trained = self.learner.end_epoch()
        self._waited = self.learner.task.waited - self._waited
        self.learner.task.ranks.broadcast_buffers(self.student, self.method)
        self.student.eval()
        self.method.eval()
        self.method.end_epoch(self.stage, self.epoch + 1, self.student, self._last_test_outputs)
        self._evaluation = Evaluation(self.learner, self.tests_loss)

    @torch.no_grad()
    def _last_test_outputs(self) -> tuple[TaskOutputs, TaskBatch]:
        """A few random test images, and what the student makes of them."""
        batch = self.learner.task.last_test_batch(*self.next_epoch)
        return self.learner.forward(batch), batch

    def evaluate(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Look at test images; ``teacher`` holds the teacher's outputs for them, where a loss is asked for."""
        self._evaluation.update(batch, teacher)

    def end_epoch(self, started: float, cohort_size: int) -> EpochRecord:
        """Record what was trained and measured, and step on to the next epoch."""
        metrics, test_loss = self._evaluation.result()
        self.epoch += 1
        record = EpochRecord(
            stage=self.stage.name,
            epoch=self.epoch,
            lr=self.stage.recipe.lr_at(self.epoch),
            train_loss=self._trained.loss,
            metrics=metrics | self._trained.metrics,
            terms=self._trained.terms,
            seconds=time.perf_counter() - started,
            cohort_size=cohort_size,
            waited=self._waited,
            test_loss=test_loss,
        )
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

    def state(self) -> dict[str, Any]:
        """Everything that continues this run to the same bits; tensors and plain values only."""
        place = {"run": self.run_id, "position": self._position, "epoch": self.epoch}
        return place | state_of(self.learner, self.history)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave, by this or by another process.

        The student's and the method's tensors must have been compared with those that are here.

        Raises:
            Exception: of any kind; it is no state of this run. Nothing has changed then.
        """
        history, place = read_place(state, self.stages)
        before = self._position, self.epoch, self.learner
        try:
            self._position, self.epoch = place
            self._begin_stage()  # the last stage's optimiser, where all is done
            load_optimisation(self.learner, state, self.epoch)
        except Exception:
            self._position, self.epoch, self.learner = before
            raise
        load_networks(self.learner, state)
        self.history = history
