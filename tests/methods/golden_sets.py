"""Reading the golden sets of CD, MGD and ReviewKD, and comparing with them by their rule."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdtable import methods
from kdtable.data import Batch
from kdtable.methods.base import Method, Setting
from kdtable.methods.objective import Objective
from kdtable.models.outputs import Outputs
from kdtable.recipes.recipe import Recipe
from kdtable.training.step import weighted_sum

GOLDEN = Path(__file__).parents[1] / "golden"


class Case:
    """One case of a set, with its arrays."""

    def __init__(self, folder: str, entry: Mapping[str, Any]) -> None:
        self.name, self.hyper, self.rtol = entry["name"], entry["hyper"], entry["rtol"]
        with np.load(GOLDEN / folder / entry["file"]) as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files}

    def given(self, name: str) -> Tensor:
        return self.arrays[f"in/{name}"]

    def leaf(self, name: str) -> Tensor:
        return self.given(name).clone().requires_grad_()

    def par(self, prefix: str) -> dict[str, Tensor]:
        """The parameters whose names begin so, without that beginning."""
        start = f"par/{prefix}"
        return {name.removeprefix(start): array for name, array in self.arrays.items() if name.startswith(start)}

    def out(self, name: str) -> Tensor:
        return self.arrays[f"out/{name}"]

    def check(self, name: str, value: Tensor | list[float] | None) -> None:
        """|a - b| <= rtol * max(1, max |b|)."""
        assert value is not None, name
        expected = self.out(name).double()
        found = torch.as_tensor(value, dtype=torch.float64).detach().reshape(expected.shape)
        gap = (found - expected).abs().max()
        assert gap <= self.rtol * max(1.0, expected.abs().max().item()), f"{self.name} {name}: off by {gap:.3g}"


def entries(folder: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / folder / "manifest.json").read_text())["cases"]
    return found


def kinds(folder: str) -> set[str]:
    return {entry["kind"] for entry in entries(folder)}


def by_kind(folder: str, *kinds: str) -> Any:
    """Parametrises ``case`` over the cases of some kinds."""
    chosen = [entry for entry in entries(folder) if entry["kind"] in kinds]
    cases = [pytest.param(Case(folder, entry), id=entry["name"]) for entry in chosen]
    return pytest.mark.parametrize("case", cases)


def built(
    row: str,
    student: Outputs,
    teacher: Outputs,
    terms: Mapping[str, float] | Objective | None = None,
    *,
    recipe: Recipe | None = None,
    network: nn.Module | None = None,
    **extra: Any,
) -> Method:
    """The method of a row as a run builds it, in float64.

    ``extra`` are hyper-parameters, other parts of the objective, or fields of the setting.
    """
    kind = methods.get(row)
    fields = {name: extra.pop(name) for name in ("generator", "ranks") if name in extra}
    if not isinstance(terms, Objective):
        parts = {name: extra.pop(name) for name in ("stage_epochs", "schedules") if name in extra}
        terms = Objective.of(kind.hyper, terms or {"ce": 1.0, kind.term: 1.0}, extra, **parts)
    setting = Setting(
        recipe or Recipe(epochs=1, batch_size=4, lr=0.1, milestones=()),
        terms,
        torch.zeros(4),
        student.logits.shape[1],
        student,
        teacher,
        teacher=network,
        **fields,
    )
    return kind(setting).double()


def batch(labels: Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 1, 1), labels, torch.arange(len(labels)), 1)


def logits_only(case: Case) -> tuple[Outputs, Outputs]:
    return Outputs(case.leaf("s_logits")), Outputs(case.given("t_logits"))


def check_kd(case: Case) -> None:
    """A case of plain KD, through the row ``kd``."""
    student, teacher = logits_only(case)
    method = built("kd", student, teacher, {"kd": 1.0}, kd_temperature=case.hyper["T"])
    loss = method.loss("kd", student, teacher, batch(torch.zeros(len(student.logits), dtype=torch.int64)))
    loss.backward()
    case.check("loss", loss)
    case.check("grad_s_logits", student.logits.grad)


def objective(method: Method, student: Outputs, teacher: Outputs, labels: Tensor, epoch: int = 1) -> Tensor:
    """The main stage's loss in an epoch, as a training step has it."""
    stage = method.stages()[-1]
    losses = [method.loss(term.name, student, teacher, batch(labels)) for term in stage.terms]
    return weighted_sum(losses, stage, epoch)
