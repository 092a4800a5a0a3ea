"""Students on two views of each image: alone or in company, continued, and one view left as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdtable.checkpoints import checkpoint
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.training.test_promises import assert_same

RECIPE = replace(engine.RECIPE, epochs=2, milestones=(1,), views="weak-strong", randaugment=2, randaugment_magnitude=10)
ROWS = ("vanilla", "kd", "mlkd")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    fix_threads()


@pytest.fixture(scope="module")
def company() -> engine.Sink:
    return engine.trained(ROWS, RECIPE)


@pytest.mark.parametrize("row", ROWS)
def test_alone_or_in_company(company: engine.Sink, row: str) -> None:
    assert_same(engine.trained((row,), RECIPE).states[f"resnet8-{row}", 2], company.states[f"resnet8-{row}", 2])


def test_continued_from_a_checkpoint(company: engine.Sink, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", company.states["resnet8-mlkd", 1])
    fresh = engine.member("mlkd", engine.task(recipe=RECIPE), engine.teacher(), recipe=RECIPE).state()
    resumed = engine.trained(("mlkd",), RECIPE, after={"resnet8-mlkd": checkpoint.load(tmp_path / "c.pt", fresh)})
    assert_same(resumed.states["resnet8-mlkd", 2], company.states["resnet8-mlkd", 2])


def test_readings_train_other_students(company: engine.Sink) -> None:
    paper = engine.trained(("mlkd",), RECIPE, reading="paper").states["resnet8-mlkd", 2]["student"]
    assert not torch.equal(paper["fc.weight"], company.states["resnet8-mlkd", 2]["student"]["fc.weight"])  # type: ignore[index]


def test_each_view_is_a_pass_of_its_own() -> None:
    """Batch norms see the views apart, the weak one first, and the teacher sees both."""
    task, teacher = engine.task(recipe=RECIPE), engine.teacher()
    member = engine.member("mlkd", task, teacher, recipe=RECIPE)
    reference = engine.member("mlkd", task, teacher, recipe=RECIPE).student.train()
    batch = next(iter(task.batches("main", 1)))
    member.begin_epoch()
    found: Outputs = member.learner.forward(batch)
    assert found.strong is not None
    assert torch.equal(found.logits, reference(batch.images).logits)
    assert torch.equal(found.strong.logits, reference(batch.strong).logits)
    for name, buffer in reference.named_buffers():
        assert torch.equal(dict(member.student.named_buffers())[name], buffer), name
    with torch.no_grad():
        seen = FrozenTeacher(teacher, task).outputs(batch, frozenset())
        assert torch.allclose(seen.strong.logits, teacher(batch.strong).logits, atol=1e-4)
