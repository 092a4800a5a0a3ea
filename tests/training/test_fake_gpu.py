"""One step of every row of every paper, and a pass of every network, on a CUDA device of fake tensors.

A tensor left on the CPU raises, and so does an operation whose result the host must read. Untested here, since these
need a device: autocast (hence bf16 and fp16), what kernels compute, which kernels wait for the host by themselves (a
decomposition), CUDA graphs. With a CUDA build of torch on a machine without a GPU the backward pass is left out too.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from kdtable import papers
from kdtable.data.sets import ImageSet
from kdtable.data.spec import DataSpec
from kdtable.models.names import NETWORKS
from kdtable.models.outputs import EVERYTHING
from kdtable.numerics.precision import Precision
from kdtable.planning.run import Run
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.base import tensors_of
from kdtable.tasks.classification import Classification
from kdtable.training.build import build_member, build_student, build_teacher
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests.papers import resolving
from tests.papers.conftest import resolve_from_names_alone
from tests.training.fake_gpu import GPU, fake_gpu

RECIPE = Recipe(epochs=2, batch_size=4, lr=0.1, milestones=())
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_gpu(monkeypatch):
        yield


@cache
def runs() -> dict[str, Run]:
    """A run of each row of each paper, the first in its tables."""
    found: dict[str, Run] = {}
    with pytest.MonkeyPatch.context() as patch:
        resolve_from_names_alone(patch)
        for paper in papers.names():
            if not papers.load(paper).tables:
                continue
            for planned in resolving.cells(paper):
                found.setdefault(f"{paper}: {planned.row}", planned.run)
    return found


ROWS = list(runs())


def task(size: int = 32) -> Classification:
    data = DataSpec("fake", "fake-0", "npz", None, "0" * 64, 4, HALF, HALF, size, 40, 8)
    images = torch.zeros(40, 3, size, size, dtype=torch.uint8)
    labels = torch.zeros(40, dtype=torch.int64)
    return Classification(ImageSet(data, images, labels, images[:8], labels[:8]), RECIPE, 1, Precision("fp32", GPU))


def member(run: Run, task: Classification, student: str, teacher: Any) -> Member:
    return build_member(
        run.id,
        run.method,
        run.objective,
        RECIPE,
        student=build_student(student, task.images.spec, 1),
        teacher=teacher and teacher.network,
        task=task,
        test_loss=bool(run.test_loss),
    )


def small(name: str, of: str) -> str:
    """A small network with the same extra classifiers."""
    return of + name[name.find("+") :] if "+" in name else of


@pytest.mark.parametrize("row", ROWS)
def test_a_step_of_every_row(row: str) -> None:
    run, own = runs()[row], task()
    frozen = None
    if run.teacher is not None:
        name = small(run.teacher.network, "resnet14")
        network = build_teacher(name, 4, HALF, HALF).to(GPU)
        frozen = FrozenTeacher(network, own)
    trained = member(run, own, small(run.student, "resnet8"), frozen)
    if hasattr(trained.method, "is_matched"):
        trained.method.is_matched = True  # its sweep, before the epoch, reads on the host
    for stage in trained.stages:
        trained.begin_epoch()
        batch = next(own.batches(stage.name, 1))
        outputs = frozen.outputs(batch, stage.teacher_features) if frozen and stage.uses_teacher else None
        trained.step(batch, outputs)
        assert trained.learner.sums.device == GPU
        trained.advance()
    assert all(tensor.device == GPU for tensor in trained.student.state_dict().values())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_of_every_network(name: str) -> None:
    own = task()
    student = build_student(name, own.images.spec, 1).to(GPU)
    outputs = own.forward(student, next(own.batches("main", 1)), EVERYTHING)
    assert {tensor.device for tensor in tensors_of(outputs)} == {GPU}


def test_what_these_tests_look_for_raises() -> None:
    on_gpu = torch.empty(2, device=GPU)
    with pytest.raises(RuntimeError, match="same device"):
        on_gpu + torch.empty(2)
    with pytest.raises(RuntimeError):
        on_gpu.sum().item()
