"""The teacher pass: outputs that students read and never change."""

import copy
from typing import Protocol

import torch

from kdtable.models.ensemble import Ensemble, single_networks
from kdtable.models.folding import fold_batch_norms
from kdtable.models.network import Network
from kdtable.tasks.base import Task, TaskBatch, TaskOutputs


class Teacher(Protocol):
    """Computes the teacher's outputs for a cohort."""

    def outputs(self, batch: TaskBatch, needs: frozenset[str]) -> TaskOutputs:
        """The outputs for a batch, with the features in ``needs``; all tensors are constants."""

    def in_train_mode(self) -> "Teacher":
        """The same network with batch norms in train mode, which use each batch's own statistics."""

    def under(self, task: Task) -> "Teacher":
        """The same network under another task."""


class FrozenTeacher:
    """A network in eval mode, with its batch norms folded into its convolutions.

    Args:
        network: trained, in eval mode, on the task's device; one or an ensemble. It is not changed: a folded copy runs.
        task: runs the network, in its precision.
    """

    def __init__(self, network: Network | Ensemble, task: Task) -> None:
        self.network = network
        self.task = task
        self._folded = copy.deepcopy(network)
        for one in single_networks(self._folded):
            fold_batch_norms(one)

    @torch.no_grad()  # not inference mode: students save these tensors for their backward pass
    def outputs(self, batch: TaskBatch, needs: frozenset[str]) -> TaskOutputs:
        """See :class:`Teacher`."""
        return self.task.forward(self._folded, batch, needs)

    def in_train_mode(self) -> "TrainModeTeacher":
        """See :class:`Teacher`; returns a new copy at each call."""
        return TrainModeTeacher(self.network, self.task)

    def under(self, task: Task) -> "FrozenTeacher":
        """See :class:`Teacher`."""
        other = copy.copy(self)
        other.task = task
        return other


class TrainModeTeacher:
    """A copy of a network in train mode, as some published codes leave their teacher.

    Its outputs depend only on the batch and the weights. The copy's running statistics drift, but nothing reads them,
    so no checkpoint holds them.

    Args:
        network: trained; it is not changed.
        task: runs the network, in its precision.
    """

    def __init__(self, network: Network | Ensemble, task: Task) -> None:
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
