"""Whole training steps of the CRD benchmark's loop, with the members that a cohort trains, in float64."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdtable import methods, models
from kdtable.data import Batch
from kdtable.methods.base import Setting
from kdtable.models.network import Network
from kdtable.recipes.recipe import Recipe
from kdtable.training.build import output_shapes
from kdtable.training.member import Member
from tests import engine
from tests.asking import aim
from tests.golden_arrays import Arrays, fill
from tests.golden_data import checks

SIZE = 32  # of the images, which the rules of the set draw


class Trajectory(Arrays):
    """Its numbers are in the file that lists it."""

    def _read(self) -> Iterator[tuple[str, Any]]:
        for name in ("loss", "probe_logits"):
            yield name, np.array(self.data[name])

    def _is_expected(self, name: str) -> bool:
        return True

    def _tolerance(self, largest: torch.Tensor) -> torch.Tensor:
        return 1e-8 * largest  # stored to ten significant digits


@partial(checks, "crd/trajectories.json", arrays=Trajectory)()
def test_whole_training_steps(case: Trajectory) -> None:
    """Teacher pass, student step and SGD."""
    teacher, student = network(case.data, "teacher", 0), network(case.data, "student", 1)
    trained = member(case.data, student, teacher)
    trained.begin_epoch()
    losses = []
    for batch in batches(case.data):
        with torch.no_grad():
            taught = teacher(batch.images)
        losses.append(engine.stepped(trained, batch, taught))
    probe = np.random.default_rng(case.data["salt"] + 7).standard_normal((2, 3, SIZE, SIZE))
    with torch.no_grad():
        logits = student.eval()(torch.from_numpy(probe)).logits
    case.check("probe_logits", logits)
    case.leave("loss")  # compared step by step
    assert losses == pytest.approx(case.data["loss"], rel=1e-8, abs=0)


def network(case: Any, role: str, salt: int) -> Network:
    built = models.build(case[role], case["num_classes"]).double()
    fill(built, case["salt"] + salt)
    return built.eval()


def batches(case: Any) -> Iterator[Batch]:
    size = case["batch"]
    for i in range(case["steps"]):
        draw = np.random.default_rng(case["salt"] + 100 + i)
        images = torch.from_numpy(draw.standard_normal((size, 3, SIZE, SIZE)))
        labels = torch.from_numpy(draw.integers(0, case["num_classes"], size))
        yield Batch(images, labels, torch.arange(size), 1)


def member(case: Any, student: Network, teacher: nn.Module) -> Member:
    row, classes = case["method"], case["num_classes"]
    weights = {"ce": case["ce"], "kd": case["kd"], methods.get(row).term: case["distill"]}
    recipe = Recipe(
        epochs=1,
        batch_size=case["batch"],
        lr=case["lr"],
        milestones=(),
        momentum=case["momentum"],
        nesterov=case["nesterov"],
        weight_decay=case["weight_decay"],
    )
    terms = {name: float(weight) for name, weight in weights.items() if name}
    setting = Setting(
        recipe,
        aim(row, terms, {"kd_temperature": float(case["temperature"])}),
        torch.arange(2 * classes) % classes,
        classes,
        output_shapes(student, SIZE),
        output_shapes(teacher, SIZE),
    )
    return Member(case["id"], student, methods.get(row)(setting), engine.task(engine.image_set(classes=classes)))
