"""From a resolved run to the networks and the method that a cohort trains.

Every random start is a stream of its own: a network's from (seed, its name without extra classifiers), a method's
from (seed, method), so that every method starts from the same student and no adaptor shifts another draw.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from kdtable import models, seeding, tasks
from kdtable.data.spec import DataSpec
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.methods import get
from kdtable.methods.base import Method, Setting
from kdtable.models.network import Network
from kdtable.models.outputs import EVERYTHING, Outputs
from kdtable.numerics.layout import to_device
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from kdtable.tasks.base import Task


def build_student(name: str, data: DataSpec, seed: int) -> Network:
    """A freshly initialised network that normalises its input by the data set's constants."""
    with seeding.global_stream("network", seed, models.base_name(name)):
        return models.build(name, data.num_classes, mean=data.mean, std=data.std, image_size=data.image_size)


def build_teacher(
    name: str, num_classes: int, mean: Sequence[float], std: Sequence[float], image_size: int = 32
) -> Network:
    """A frozen network in eval mode, to be filled with trained weights."""
    with seeding.global_stream("teacher"):  # its weights will be replaced: leave the global generator alone
        network = models.build(name, num_classes, mean=mean, std=std, image_size=image_size)
    return network.eval().requires_grad_(False)


def build_method(
    row: str,
    *,
    recipe: Recipe,
    terms: Mapping[str, float],
    params: Mapping[str, Any],
    labels: torch.Tensor,
    student: nn.Module,
    teacher: nn.Module | None,
    data: DataSpec,
    seed: int,
    device: torch.device,
    stage_epochs: Mapping[str, int] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    ranks: Ranks = SINGLE_PROCESS,
    task: type[Task] | None = None,
) -> Method:
    """The method of a row with freshly initialised adaptors, on ``device``; by default for classification."""
    task = task or tasks.get("classification")
    method = get(row)
    name = method.__name__
    setting = Setting(
        recipe=recipe,
        terms=terms,
        params=params,
        labels=labels.to(device),
        num_classes=data.num_classes,
        student_shapes=output_shapes(student, data.image_size, task),
        teacher_shapes=None if teacher is None else output_shapes(teacher, data.image_size, task),
        generator=seeding.generator("draws", seed, name, device=device),
        stage_epochs=stage_epochs or {},
        student=student,
        teacher=teacher,
        image_size=data.image_size,
        schedules=schedules or {},
        ranks=ranks,
        base_terms=task.base_terms,
    )
    with seeding.global_stream("method", seed, name):
        built = method(setting)
    return to_device(built, device)


@lru_cache(maxsize=64)
def network_shapes(name: str, num_classes: int, image_size: int, task: type[Task] | None = None) -> Outputs:
    """The outputs of a network for a task's probe, of which only the shapes mean anything.

    One image through weights that nobody drew takes a quarter of the time of tensors without data, for whose sake
    torch imports a symbolic algebra.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for each other longer than they compute
    try:
        with seeding.global_stream("shapes"), _Undrawn():
            network = models.build(name, num_classes, image_size=image_size)
        return output_shapes(network, image_size, task)
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=64)
def network_norms(name: str, num_classes: int, image_size: int) -> tuple[nn.BatchNorm2d | None, ...]:
    """The batch norms in front of a network's taps before the activation, of which only the sizes mean anything."""
    with seeding.global_stream("shapes"), _Undrawn():
        return models.build(name, num_classes, image_size=image_size).tap_norms()


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where they would be filled with random numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def output_shapes(network: nn.Module, image_size: int, task: type[Task] | None = None) -> Outputs:
    """The outputs of a network for a task's probe, found by a pass in eval mode that changes nothing."""
    task = task or tasks.get("classification")
    was_training = network.training
    outputs: Outputs = task.apply(network.eval(), task.probe(image_size, like=next(network.parameters())), EVERYTHING)
    network.train(was_training)
    return outputs
