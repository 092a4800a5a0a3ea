"""A member of a cohort: one student in training, with its method, optimiser and history."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from kdtable.checkpoints.validation import read_position
from kdtable.methods.base import Method, Stage
from kdtable.recipes.record import EpochRecord, validated
from kdtable.tasks.base import ClosingMeter, Task, TaskBatch, TaskOutputs
from kdtable.training.best import BestWeights
from kdtable.training.evaluation import Evaluation
from kdtable.training.state import load_networks, load_optimisation, state_of
from kdtable.training.step import Learner


class Member:
    """One student: network, method with its adaptors, optimiser, current stage and epoch, history.

    Args:
        run_id: identity of the run.
        student: the network, on its device and in its layout.
        method: built for this student, on the same device.
        task: task of the stages that name none.
        task_of: returns the task that a stage names, the same object for all members of a cohort.
        test_loss: whether to measure the loss on the test images in the main stage.
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
        #: The weights of the best epoch on held-out images; ``None`` where the test set is measured after every epoch.
        self.best = BestWeights(student, method) if task.watched == "validation" else None
        #: Whether the current evaluation compares the student with the teacher, as that of the last epoch does.
        self.closing_with_teacher = False
        self._begin_stage()

    def _begin_stage(self) -> None:
        self.learner = Learner(self.student, self.method, self.task, self.stage)

    @property
    def stage(self) -> Stage:
        """The stage of the next epoch; the last stage when the member is done."""
        return self.stages[min(self._position, len(self.stages) - 1)]

    @property
    def task(self) -> Task:
        """The current stage's task."""
        return self._task_of(self.stage.task) if self.stage.task and self._task_of else self._task

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The current stage's optimiser."""
        return self.learner.optimizer

    @property
    def done(self) -> bool:
        """Whether all stages are finished."""
        return self._position == len(self.stages)

    @property
    def next_epoch(self) -> tuple[str, int]:
        """Stage name and number (from 1) of the next epoch."""
        return self.stage.name, self.epoch + 1

    @property
    def sweep_limit(self) -> int | None:
        """How many training images the method sweeps over before the next epoch; ``None`` for no sweep."""
        return self.method.sweep_before(self.stage, self.epoch + 1)

    def begin_sweep(self) -> None:
        """Put the student in eval mode and reset the method's sweep."""
        self.student.eval()
        self.method.begin_sweep()

    @torch.no_grad()
    def observe(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Pass both networks' outputs for a batch of a sweep to the method."""
        outputs = self.learner.forward(batch)
        self.method.observe(outputs, self.learner.teacher_for(outputs, teacher, batch), batch)

    def begin_epoch(self) -> None:
        """Set the epoch's learning rate and reset its sums."""
        self.learner.begin_epoch(self.epoch + 1)
        self._waited = self.learner.task.waited

    def step(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Make one optimiser step on a batch; ``teacher`` holds the teacher's outputs for it."""
        self.learner.step(batch, teacher)

    @property
    def tests_loss(self) -> bool:
        """Whether the current stage's loss on the test images is measured; only the main stage's can be."""
        return self.stage.name == "main" and self._wants_test_loss

    def begin_evaluation(self) -> None:
        """End the epoch's training and prepare the student and its method for the test images.

        Raises:
            Diverged: the epoch's loss is not finite; the state is then unusable.
        """
        self._trained = self.learner.end_epoch()
        self._waited = self.learner.task.waited - self._waited
        modules = dict.fromkeys((self.student, self.method, self.learner.measured))
        self.learner.task.ranks.broadcast_buffers(*modules)
        self.student.eval()
        self.method.eval()
        self.method.end_epoch(self.stage, self.epoch + 1, self.student, self._last_test_outputs)
        closing = self._closing_meter() if self.last_of_main and self.best is None else None
        self._evaluation = Evaluation(self.learner, self.tests_loss, closing, self.task.watched)
        self._tested: dict[str, float] = {}

    def _closing_meter(self) -> ClosingMeter | None:
        has_teacher = any(stage.uses_teacher for stage in self.stages)
        closing = self.task.closing_meter(with_teacher=has_teacher)
        self.closing_with_teacher = closing is not None and closing.with_teacher
        return closing

    @property
    def last_of_main(self) -> bool:
        """Whether the current epoch is the main stage's last."""
        return self.stage.name == "main" and self.epoch + 1 == self.stage.recipe.epochs

    def end_validation(self) -> None:
        """End an evaluation on held-out images: keep the weights if the epoch is the best of the main stage so far."""
        self._validated = metrics, _ = self._evaluation.result()
        if self.best is None or self.stage.name != "main":
            return
        main, stored = self.task.metrics[0], self.task.metrics[0].on_validation().stored
        before = validated(self.history, main)
        if before is None or main.goodness(metrics[stored]) >= main.goodness(before.metrics[stored]):
            self.best.keep(self.learner.measured)

    def begin_test(self) -> None:
        """Put the weights of the best epoch in place, and prepare to measure the test set with them."""
        self._swapped = ExitStack()
        if self.best is not None:
            self._swapped.enter_context(self.best.in_place(self.learner.measured))
        self._evaluation = Evaluation(self.learner, False, self._closing_meter())

    def end_test(self) -> None:
        """End the test, and put the weights of the last epoch back."""
        self._tested, _ = self._evaluation.result()
        self._swapped.close()

    @torch.no_grad()
    def _last_test_outputs(self) -> tuple[TaskOutputs, TaskBatch]:
        """The student's outputs for a few random images of the watched part, and those images."""
        batch = self.learner.task.last_watched_batch(*self.next_epoch)
        return self.learner.forward(batch), batch

    def evaluate(self, batch: TaskBatch, teacher: TaskOutputs | None) -> None:
        """Evaluate a batch; ``teacher`` holds the teacher's outputs for it where the evaluation reads them."""
        self._evaluation.update(batch, teacher)

    def end_epoch(self, started: float, cohort_size: int, cpu_seconds: float | None = None) -> EpochRecord:
        """Record the epoch and move on to the next one.

        Args:
            started: when it began, by `time.perf_counter`.
            cohort_size: how many members trained in it.
            cpu_seconds: CPU time of this member's own work, if it was measured.
        """
        metrics, test_loss = self._evaluation.result() if self.best is None else self._validated
        self.epoch += 1
        record = EpochRecord(
            stage=self.stage.name,
            epoch=self.epoch,
            lr=self.learner.rate,
            train_loss=self._trained.loss,
            metrics=metrics | self._trained.metrics | self._tested,
            terms=self._trained.terms,
            seconds=time.perf_counter() - started,
            cohort_size=cohort_size,
            waited=self._waited,
            cpu_seconds=cpu_seconds,
            test_loss=test_loss,
        )
        self.history.append(record)
        if self.epoch == self.stage.recipe.epochs:
            self.advance()
        return record

    def advance(self) -> None:
        """Move on to the next stage, which starts with a fresh optimiser."""
        self.optimizer.zero_grad(set_to_none=True)  # or untrained parameters keep old gradients
        self._position += 1
        if not self.done:
            self.epoch = 0
            self._begin_stage()

    def state(self) -> dict[str, Any]:
        """All that is needed to resume this run bit for bit, as tensors and plain values."""
        position = {"run": self.run_id, "position": self._position, "epoch": self.epoch}
        return position | state_of(self.learner, self.history) | (self.best.state() if self.best else {})

    def trained_student(self) -> dict[str, Any]:
        """The weights to keep of a finished run: of the best epoch on held-out images, else of the last one."""
        return self.learner.measured.state_dict() if self.best is None else self.best.student

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from a :meth:`state` of this or another process.

        The caller has checked names and shapes of the student's and the method's tensors.

        Raises:
            Exception: of any kind; it is no state of this run. The member is then unchanged.
        """
        history, position = read_position(state, [(stage.name, stage.recipe.epochs) for stage in self.stages])
        before = self._position, self.epoch, self.learner
        try:
            self._position, self.epoch = position
            self._begin_stage()  # where all is done: with the last stage's optimiser
            load_optimisation(self.learner, state, self.epoch)
        except Exception:
            self._position, self.epoch, self.learner = before
            raise
        load_networks(self.learner, state)
        if self.best is not None:
            self.best.load_state(state)
        self.history = history
