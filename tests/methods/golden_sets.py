"""Methods as a run builds them, for outputs that a test gives."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Objective
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.step import weighted_sum
from tests.golden_arrays import Slashed
from tests.golden_data import checks

#: Tests of the cases of CD, MGD and ReviewKD, which are of float64 alone.
slashed = partial(checks, arrays=Slashed)


def built(
    row: str,
    student: Outputs,
    teacher: Outputs | None,
    terms: Mapping[str, float] | Objective | None = None,
    *,
    recipe: Recipe | None = None,
    network: nn.Module | None = None,
    learner: nn.Module | None = None,
    dtype: torch.dtype = torch.float64,
    **extra: Any,
) -> Method:
    """The method of a row as a run builds it.

    ``network`` is the teacher itself, ``learner`` the student; ``extra`` are hyper-parameters, other parts of the
    objective, or fields of the setting.
    """
    kind = methods.get(row)
    fields = {name: extra.pop(name) for name in ("generator", "ranks") if name in extra}
    labels = extra.pop("labels", torch.zeros(4))
    if not isinstance(terms, Objective):
        parts = {name: extra.pop(name) for name in ("stage_epochs", "schedules") if name in extra}
        terms = Objective.of(kind.hyper, terms or {"ce": 1.0, kind.term or "kd": 1.0}, extra, **parts)
    setting = Setting(
        recipe or Recipe(epochs=1, batch_size=4, lr=0.1, milestones=()),
        terms,
        labels,
        student.logits.shape[-1],
        student,
        teacher,
        student=learner,
        teacher=network,
        **fields,
    )
    return kind(setting).to(dtype)


def batch(labels: Tensor, epoch: int = 1) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 1, 1), labels, torch.arange(len(labels)), epoch)


def unlabelled(images: int) -> Batch:
    """One for terms that read no label."""
    return batch(torch.zeros(images, dtype=torch.int64))


def logits_only(case: Slashed) -> tuple[Outputs, Outputs]:
    return Outputs(case.leaf("s_logits")), Outputs(case.given("t_logits"))


def check_kd(case: Slashed) -> None:
    """A case of plain KD, through the row ``kd``."""
    student, teacher = logits_only(case)
    method = built("kd", student, teacher, {"kd": 1.0}, kd_temperature=case.hyper["T"])
    loss = method.loss("kd", student, teacher, unlabelled(len(student.logits)))
    loss.backward()
    case.check("loss", loss)
    case.check("grad_s_logits", student.logits.grad)


def objective(method: Method, student: Outputs, teacher: Outputs | None, images: Batch, epoch: int = 1) -> Tensor:
    """The main stage's loss in an epoch, as a training step has it."""
    stage = method.stages()[-1]
    losses = [method.loss(term.name, student, teacher, images) for term in stage.terms]
    return weighted_sum(losses, stage, epoch)
