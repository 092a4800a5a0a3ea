"""Small runs for tests: real networks, methods and batches, on data made here."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kdtable import papers
from kdtable.data import Batch
from kdtable.data.sets import ImageSet
from kdtable.data.spec import DataSpec
from kdtable.methods import get
from kdtable.methods.base import Method
from kdtable.methods.objective import Objective, settable
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import to_device
from kdtable.numerics.precision import Precision
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.classification import Classification
from kdtable.training.build import build_member, build_student, build_teacher
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import dih_rows

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05, milestones=(2,))
EARLY_EPOCHS = 2  # of each stage before the main one


def image_set(train: int = 40, test: int = 24, classes: int = 4, size: int = 32, seed: int = 0) -> ImageSet:
    """Noise whose brightness tells the class, so that a student can learn it."""
    draw = torch.Generator().manual_seed(seed)

    def part(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % classes
        noise = torch.randint(0, 100, (count, 3, size, size), generator=draw)
        return (noise + 150 * labels.view(-1, 1, 1, 1) // classes).to(torch.uint8), labels

    mean = std = (0.5, 0.5, 0.5)
    spec = DataSpec("noise", "noise-0", "npz", None, "0" * 64, classes, mean, std, size, train, test)
    return ImageSet(spec, *part(train), *part(test))


def task(
    images: ImageSet | None = None, recipe: Recipe = RECIPE, seed: int = 1, precision: str = "fp32"
) -> Classification:
    return Classification(images or image_set(), recipe, seed, Precision(precision, CPU))


def teacher(name: str = "resnet14", images: ImageSet | None = None) -> torch.nn.Module:
    spec = (images or image_set()).spec
    torch.manual_seed(5)
    return to_device(build_teacher(name, spec.num_classes, spec.mean, spec.std), CPU)


def settings_of(row: str) -> papers.Row:
    return dih_rows.ROWS.get(row) or papers.load("crd").row(row)


def teacher_of(row: str) -> torch.nn.Module:
    return teacher(dih_rows.TEACHERS.get(row, "resnet14"))


def method(
    row: str, task: Classification, student: torch.nn.Module, teacher: torch.nn.Module | None, **params: object
) -> Method:
    return _member(row, task, student, teacher, params).method


def _member(
    row: str,
    task: Classification,
    student: torch.nn.Module,
    teacher: torch.nn.Module | None,
    params: Mapping[str, object],
    recipe: Recipe = RECIPE,
    **others: Any,
) -> Member:
    settings, kind = settings_of(row), get(row)
    of_crd = "crd." if "crd.dim" in settable(kind.hyper) else ""
    small = {f"{of_crd}negatives": 24, f"{of_crd}dim": 8} if "crd" in row else {}
    objective = Objective.of(
        kind.hyper,
        settings.terms,
        {**settings.params, **small, **params},
        settings.schedules,
        dict.fromkeys(settings.stages, EARLY_EPOCHS),
    )
    name = others.pop("name", row)
    return build_member(name, kind, objective, recipe, student=student, teacher=teacher, task=task, **others)


def member(
    row: str,
    task: Classification,
    teacher: torch.nn.Module | None,
    student: str | None = None,
    *,
    test_loss: bool | None = None,
    recipe: Recipe = RECIPE,
    **params: object,
) -> Member:
    student = student or dih_rows.STUDENTS.get(row, "resnet8")
    network = build_student(student, task.images.spec, task.seed)
    settings = settings_of(row)
    own = {name: value for name, value in settings.params_for(student).items() if name not in settings.params}
    test_loss = bool(settings.test_loss) if test_loss is None else test_loss
    others: dict[str, Any] = {"test_loss": test_loss, "name": f"{student}-{row}"}
    return _member(row, task, network, teacher, {**own, **params}, recipe, **others)


class Sink:
    """Keeps what a cohort says."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, int], dict[str, object]] = {}
        self.failures: dict[str, str] = {}
        self.images = 0

    def stepped(self, members: Sequence[Member], images: int) -> None:
        self.images += images * len(members)

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        import copy

        self.states[member.run_id, record.epoch] = copy.deepcopy(member.state())

    def failed(self, run_id: str, error: BaseException) -> None:
        self.failures[run_id] = str(error)


def trained(
    rows: Sequence[str], recipe: Recipe, after: Mapping[str, dict[str, Any]] | None = None, **params: object
) -> Sink:
    """Train rows in one cohort, from the start or on from the states ``after``."""
    one, master, sink = task(recipe=recipe), teacher(), Sink()
    members = [member(row, one, master, recipe=recipe, **params) for row in rows]
    for each in members:
        if after:
            each.load_state(after[each.run_id])
    Cohort(one, FrozenTeacher(master, one), members, sink, workers=len(rows)).train()
    assert not sink.failures
    return sink


def end_epoch(member: Member, teacher: torch.nn.Module | None = None) -> EpochRecord:
    """Examine a member as a cohort does, and end its epoch."""
    member.begin_evaluation()
    for batch in member.task.evaluation_batches("test"):
        teacher_outputs = None
        if teacher is not None:
            with torch.no_grad():
                teacher_outputs = member.task.forward(teacher, batch, member.stage.teacher_features)
        member.evaluate(batch, teacher_outputs)
    return member.end_epoch(0.0, 1)


def stepped(member: Member, batch: Batch, teacher: Outputs | None) -> float:
    """Take a step, and give the loss before it."""
    seen = member.learner.sums[0].item()
    member.step(batch, teacher)
    return (member.learner.sums[0].item() - seen) / len(batch.labels)
