"""Build the networks, the method and the member of a resolved run.

Every initialisation has its own random stream: a network's comes from (seed, its name without extra classifiers), a
method's from (seed, method). So every method starts from the same student, and no adaptor shifts other random draws.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from kdtable import models, seeding, tasks
from kdtable.data.spec import DataSpec
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Objective
from kdtable.models.network import Network
from kdtable.models.outputs import EVERYTHING, Outputs
from kdtable.models.uninitialised import uninitialised
from kdtable.numerics.layout import to_device
from kdtable.plugins import FORGET
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Task
from kdtable.training.member import Member


def build_student(name: str, data: DataSpec, seed: int) -> Network:
    """Build a freshly initialised network that normalises its input by the data set's constants.

    Example:
        ``student = build_student("resnet20", BUILT_IN["cifar100"], seed=1)``
    """
    with seeding.global_stream("network", seed, models.base_name(name)):
        return models.build(name, data.num_classes, mean=data.mean, std=data.std, image_size=data.image_size)


def build_teacher(
    name: str, num_classes: int, mean: Sequence[float], std: Sequence[float], image_size: int = 32
) -> Network:
    """Build a frozen network in eval mode; the caller loads its trained weights."""
    with seeding.global_stream("teacher"):  # its weights are replaced later: leave the global generator alone
        network = models.build(name, num_classes, mean=mean, std=std, image_size=image_size)
    return network.eval().requires_grad_(False)


def build_member(
    run_id: str,
    kind: type[Method],
    objective: Objective,
    recipe: Recipe,
    *,
    student: Network,
    teacher: nn.Module | None,
    task: Task,
    task_of: Callable[[str], Task] | None = None,
    labels: torch.Tensor | None = None,
    sync_batch_norm: bool = False,
    test_loss: bool = False,
) -> Member:
    """Build a student and its method, ready for the first epoch on the task's device.

    Args:
        run_id: id of the run.
        kind: the method's class.
        objective: what the run optimises.
        recipe: recipe of the main stage.
        student: the network with its initial weights.
        teacher: ``None`` where no term uses one.
        task: task of the stages that name none.
        task_of: returns the task that a stage names.
        labels: (N,) int64, the training labels; by default the task's.
        sync_batch_norm: whether batch norms use the statistics of all ranks' images.
        test_loss: whether to measure the loss on the test images.

    Raises:
        ValueError: the method cannot be built for these networks or this data set.
    """
    data, device, name = task.images.spec, task.device, kind.__name__
    student = to_device(student, device)
    setting = Setting(
        recipe=recipe,
        objective=objective,
        labels=(task.images.train_labels if labels is None else labels).to(device),
        num_classes=data.num_classes,
        student_shapes=output_shapes(student, data.image_size, type(task)),
        teacher_shapes=None if teacher is None else output_shapes(teacher, data.image_size, type(task)),
        generator=seeding.generator("draws", task.seed, name, device=device),
        student=student,
        teacher=teacher,
        image_size=data.image_size,
        ranks=task.ranks,
        base_terms=task.base_terms_of(recipe),
        forward=task.forward,
    )
    with seeding.global_stream("method", task.seed, name):
        method = to_device(kind(setting), device)
    if sync_batch_norm:
        student, method = (_synchronised(module) for module in (student, method))
    return Member(run_id, student, method, task, task_of, test_loss=test_loss)


def _synchronised(module: Any) -> Any:
    """Convert a module's batch norms to SyncBatchNorm, which uses the statistics of all ranks' images."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=64)
def network_shapes(name: str, num_classes: int, image_size: int, task: type[Task] | None = None) -> Outputs:
    """A network's outputs for a task's probe; only their shapes are meaningful.

    One image through uninitialised weights takes a quarter of the time of meta tensors, for which torch imports a
    symbolic algebra package.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads spend longer synchronising than computing
    try:
        return output_shapes(uninitialised(name, num_classes, image_size), image_size, task)
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=64)
def network_norms(name: str, num_classes: int, image_size: int) -> tuple[nn.BatchNorm2d | None, ...]:
    """The batch norms before a network's pre-activation taps; only their sizes are meaningful."""
    return uninitialised(name, num_classes, image_size).tap_norms()


def has_own_norms(name: str, num_classes: int, image_size: int) -> bool:
    """Whether a network has batch norms that extend torch's, as timm's with an activation inside."""
    modules = uninitialised(name, num_classes, image_size).modules()
    return any(isinstance(module, nn.BatchNorm2d) and type(module) is not nn.BatchNorm2d for module in modules)


FORGET.extend((network_shapes.cache_clear, network_norms.cache_clear))


@torch.no_grad()
def output_shapes(network: nn.Module, image_size: int, task: type[Task] | None = None) -> Outputs:
    """A network's outputs for a task's probe, from a pass in eval mode that changes no state."""
    task = task or tasks.get(tasks.DEFAULT)
    was_training = network.training
    outputs: Outputs = task.apply(network.eval(), task.probe(image_size, like=next(network.parameters())), EVERYTHING)
    network.train(was_training)
    return outputs
