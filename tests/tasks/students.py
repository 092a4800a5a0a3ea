"""Small students without labels, as a run builds them, on images made here."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from kdtable import methods, tasks
from kdtable.data.sets import ImageSet
from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.methods.objective import Objective
from kdtable.numerics.layout import to_device
from kdtable.numerics.precision import Precision
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Task
from kdtable.training.build import build_member, build_student, build_teacher
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import engine

ROWS = ("vanilla", "moco", "mgd", "seed")
TERMS = {
    "vanilla": {"ce": 1.0},
    "moco": {"infonce": 1.0},
    "mgd": {"infonce": 1.0, "mgd": 1.0},
    "seed": {"seed": 1.0},
}
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05, milestones=(), schedule="cosine", views="moco-v2")
SIZE = 8
#: Epochs of the probe.
PROBE = 2


def image_set(train: int = 20, labels: Sequence[int] | None = None) -> ImageSet:
    """Noise whose brightness tells the class; ``labels`` in place of its own training labels."""
    found = engine.image_set(train=train, test=12, size=SIZE)
    return found if labels is None else replace(found, train_labels=torch.tensor(labels))


def teacher(images: ImageSet) -> nn.Module:
    spec = images.spec
    torch.manual_seed(5)
    return to_device(build_teacher("resnet14", spec.num_classes, spec.mean, spec.std, SIZE), engine.CPU)


def task_finder(images: ImageSet, recipe: Recipe = RECIPE, ranks: Ranks = SINGLE_PROCESS) -> Callable[[str], Task]:
    """Tasks by name, one object each."""

    @cache
    def task_of(name: str) -> Task:
        return tasks.get(name)(images, recipe, 1, Precision("fp32", engine.CPU), ranks)

    return task_of


def member(
    row: str, task_of: Callable[[str], Task], network: nn.Module, recipe: Recipe = RECIPE, **more: Any
) -> Member:
    task, kind = task_of("self-supervised"), methods.get(row, "self-supervised")
    params = {"queue": 16} if row != "vanilla" else {}
    params |= {"bn_splits": 2, "dim": 4, "temperature": 0.2} if row in ("moco", "mgd") else {}
    params |= {"teacher_temperature": 0.05} if row == "seed" else {}
    stages = {"main": PROBE} | ({"pretrain": 0} if row == "vanilla" else {})
    objective = Objective.of(kind.hyper, TERMS[row], {"probe_lr": 0.5, **params, **more}, None, stages)
    student = build_student("resnet8", task.images.spec, 1)
    given = network if kind.needs_teacher(objective.terms) else None
    return build_member(row, kind, objective, recipe, student=student, teacher=given, task=task, task_of=task_of)


def train(
    rows: Sequence[str],
    images: ImageSet | None = None,
    change: Callable[[Member], object] = lambda _: None,
    ranks: Ranks = SINGLE_PROCESS,
    recipe: Recipe = RECIPE,
    **more: Any,
) -> tuple[engine.Sink, list[Member]]:
    """Train rows as one cohort; what it said, and its members."""
    images = images or image_set()
    network, sink = teacher(images), Stages()
    task_of = task_finder(images, recipe, ranks)
    members = [member(row, task_of, network, recipe, **more) for row in rows]
    for one in members:
        change(one)
    task = task_of("self-supervised")
    Cohort(task, FrozenTeacher(network, task), members, sink, workers=2).train()
    assert not sink.failures, sink.failures
    return sink, members


class Stages(engine.Sink):
    """Keeps states by run and number of finished epochs of all stages."""

    def epoch_done(self, member: Member, record: Any) -> None:
        self.states[member.run_id, len(member.history)] = copy.deepcopy(member.state())
