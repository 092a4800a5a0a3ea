"""Every row of every paper on a small pair, built on any device from the same start."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import torch

from kdtable import papers, seeding, tasks
from kdtable.data.sets import ImageSet
from kdtable.errors import BadRequest
from kdtable.execution.load_teacher import untrained_teacher
from kdtable.numerics import precision
from kdtable.numerics.layout import to_device
from kdtable.numerics.precision import Precision
from kdtable.planning.given import GivenWeights
from kdtable.planning.request import DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.teachers import teacher_finder
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import Task, TaskBatch, TaskOutputs
from kdtable.training.build import build_member, build_student
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher, Teacher

#: Each row is examined on the first of these pairs that can have it: an assistant needs a network between the two, and
#: torchdistill's attention a fourth stage.
PAIRS: Final = ("resnet14:resnet8", "resnet20:resnet8", "vgg13:vgg8")
BATCH: Final = 12
#: So low that rounding errors do not grow from step to step.
LR: Final = 0.01
CPU: Final = torch.device("cpu")


@cache
def rows() -> dict[str, Run]:
    """A run of every row of every paper that a small pair can have, by paper and row: ``crd: kd``."""
    found: dict[str, Run] = {}
    for paper in papers.names():
        for row in papers.load(paper).rows:
            for pair in PAIRS:
                if f"{paper}: {row}" not in found:
                    found = runs_of(paper, row, pair) | found
    return found


@cache
def distinct() -> dict[str, Run]:
    """The rows that differ in more than what an examination sets itself; of equal ones, the first."""
    found = {replace(run, recipe=_short(run.recipe)).id: name for name, run in reversed(rows().items())}
    return {name: rows()[name] for name in reversed(found.values())}


def runs_of(paper: str, row: str, pair: str) -> dict[str, Run]:
    """The runs that a row needs on a pair; none if the pair cannot have it, or if they are of another task."""
    request = Request([pair], [row], [1], paper=paper, data=DataRequest("digits"))
    try:
        planned_runs = resolve(request, teacher_finder(Path("no teachers"), GivenWeights(), allow_missing=True))
    except BadRequest:  # a row of image folders, or one that starts from published weights
        return {}
    usual = [one for one in planned_runs if one.not_applicable is None and one.run.task == tasks.DEFAULT]
    return {f"{paper}: {planned.row}": planned.run for planned in usual}


@dataclass(frozen=True, slots=True)
class Built:
    """A run's member before its first epoch, its task, and its teacher."""

    member: Member
    task: Task
    teacher: Teacher | None
    exact: bool

    def batches(self, stage: str, count: int) -> Iterator[TaskBatch]:
        """The first batch of each of the stage's epochs, from 1."""
        for epoch in range(1, count + 1):
            yield self._cast(next(self.task.batches(stage, epoch)))

    def sweep(self) -> None:
        """Show the method the training images, if it asks for them before its next epoch."""
        if self.member.sweep_limit is None:
            return
        self.member.begin_sweep()
        for batch in map(self._cast, self.task.sweep(1)):
            self.member.observe(batch, self.outputs(self.teacher, batch))
        self.member.method.end_sweep()

    def stage_teacher(self) -> Teacher | None:
        """The teacher in the mode of the member's stage; ``None`` if the stage uses none."""
        stage = self.member.stage
        if self.teacher is None or not stage.uses_teacher:
            return None
        return self.teacher.in_train_mode() if stage.teacher_mode == "train" else self.teacher

    def outputs(self, teacher: Teacher | None, batch: TaskBatch) -> TaskOutputs | None:
        """What the stage reads of the teacher for a batch."""
        return teacher and teacher.outputs(batch, self.member.stage.teacher_features)

    def _cast(self, batch: TaskBatch) -> TaskBatch:
        if not self.exact:
            return batch
        views = [name for name in ("images", "strong") if hasattr(batch, name)]
        return replace(batch, **{name: getattr(batch, name).double() for name in views})


def built(run: Run, device: torch.device, name: str = "fp32", *, exact: bool = False) -> Built:
    """Build a run on a device, on one batch of noise, with an untrained teacher; in float64 if ``exact``."""
    task = task_of(run, precision.choose(name, device), BATCH)
    frozen = teacher_of(run, task, exact=exact)
    member = member_of(run, task, frozen)
    if exact:
        member.student.double()
        member.method.double()
    return Built(member, task, frozen, exact)


def task_of(run: Run, chosen: Precision, images: int, batch: int = BATCH) -> Task:
    """The run's task in batches of ``batch``, on so many images of noise, and a few test images."""
    data, size = replace(run.data, train_count=images, test_count=BATCH), run.data.image_size
    noise = torch.randint(256, (images, 3, size, size), dtype=torch.uint8, generator=seeding.generator("doctor"))
    labels = torch.arange(images) % data.num_classes
    noisy = ImageSet(data, noise, labels, noise[:BATCH], labels[:BATCH])
    return tasks.get(run.task)(noisy, replace(run.recipe, batch_size=batch), run.seed, chosen)


def teacher_of(run: Run, task: Task, *, exact: bool = False) -> FrozenTeacher | None:
    """The run's teacher, untrained."""
    if run.teacher is None:
        return None
    network = untrained_teacher(run.teacher, run.data)
    return FrozenTeacher(to_device(network.double() if exact else network, task.device), task)


def member_of(run: Run, task: Task, teacher: FrozenTeacher | None) -> Member:
    """The run's member before its first epoch."""
    return build_member(
        run.id,
        run.method,
        run.objective,
        _short(run.recipe),
        student=build_student(run.student, run.data, run.seed),
        teacher=teacher.network if teacher and run.teacher else None,
        task=task,
    )


def _short(recipe: Recipe) -> Recipe:
    return replace(recipe, epochs=2, milestones=(), batch_size=BATCH, lr=LR, first_epoch_lr=None, warmup_epochs=0)
