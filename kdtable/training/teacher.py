"""The teacher's pass: outputs that students read and never change."""

import copy
from typing import Protocol

import torch

from kdtable.models.folding import fold_batch_norms
from kdtable.models.network import Network
from kdtable.tasks.base import Task, TaskBatch, TaskOutputs


class Teacher(Protocol):
    """Who gives a cohort's members the teacher's outputs."""

    def outputs(self, batch: TaskBatch, needs: frozenset[str]) -> TaskOutputs:
        """The plain outputs for a batch, and the features that ``needs`` names; all of them constants."""

    def in_train_mode(self) -> "Teacher":
        """The same network, whose batch norms use each batch's own statistics."""

    def under(self, task: Task) -> "Teacher":
        """The same network, as another task runs it."""


class FrozenTeacher:
    """A network in eval mode, with its batch norms folded into its convolutions.

    Args:
        network: trained, in eval mode, on the task's device; it stays as it is, a folded copy is what runs.
        task: says in which precision a network is run.
    """

    def __init__(self, network: Network, task: Task) -> None:
        self.network = network
        self.task = task
        self._folded = copy.deepcopy(network)
        fold_batch_norms(self._folded)

    @torch.no_grad()  # not inference mode: students save these tensors for their backward pass
    def outputs(self, batch: TaskBatch, needs: frozenset[str]) -> TaskOutputs:
        """See :class:`Teacher`."""
        return self.task.forward(self._folded, batch, needs)

    def in_train_mode(self) -> "TrainModeTeacher":
        """See :class:`Teacher`; a fresh one each time."""
        return TrainModeTeacher(self.network, self.task)

    def under(self, task: Task) -> "FrozenTeacher":
        """See :class:`Teacher`."""
        other = copy.copy(self)
        other.task = task
        return other


class TrainModeTeacher:
    """A copy of a network in train mode, as some published codes leave their teacher.

    What it says of a batch depends on that batch and the weights alone. The copy's running statistics drift; nothing
    reads them, so they are in no checkpoint.

    Args:
        network: trained; it stays as it is.
        task: says in which precision a network is run.
    """

    def __init__(self, network: Network, task: Task) -> None:
        self.network = copy.deepcopy(network).train()
        self.task = task

    @torch.no_grad()
    def outputs(self, batch: TaskBatch, needs: frozenset[str]) -> TaskOutputs:
        """See :class:`Teacher`."""
        return self.task.forward(self.network, batch, needs)

    def in_train_mode(self) -> "TrainModeTeacher":
        """See :class:`Teacher`."""
        return self

    def under(self, task: Task) -> "TrainModeTeacher":
        """See :class:`Teacher`."""
        return TrainModeTeacher(self.network, task)
