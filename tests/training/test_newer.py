"""The optimiser of two momenta in a run, and networks that are measured with more than the student."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.export.files import student_path
from kdtable.methods import MEASURED_WITH, get
from kdtable.methods.simkd import SimKD
from kdtable.store import Store
from kdtable.training.dot import DOT
from kdtable.training.member import Member
from tests import engine
from tests.store import samples


def trained(row: str, epochs: int = 1, **params: Any) -> Member:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member(row, task, teacher, **params)
    member.student.double()
    for _ in range(epochs):
        member.begin_epoch()
        for batch in task.batches("main", member.epoch + 1):
            with torch.no_grad():
                outputs = teacher(batch.images).mapped(Tensor.double)
            member.step(replace(batch, images=batch.images.double()), outputs)
    return member


def test_equal_momenta_are_kd() -> None:
    """Through a member, as a run trains it."""
    assert papers.load("zoo").row("dot").params["delta"] == 0.075
    plain, equal, apart = trained("kd"), trained("dot", delta=0.0), trained("dot")
    assert isinstance(apart.optimizer, DOT)
    for a, b in zip(plain.student.parameters(), equal.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert any(not torch.allclose(a, b) for a, b in zip(*(m.student.parameters() for m in (plain, apart)), strict=True))


def test_a_checkpoint_has_both_momenta() -> None:
    member = trained("dot")
    state = member.optimizer.state_dict()
    assert {name for slots in state["state"].values() for name in slots} == {"momentum_buffer", "kd_momentum_buffer"}


@pytest.mark.parametrize("delta", [-0.1, 1.0])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta must"):
        trained("dot", delta=delta)


def test_the_measured_network_has_the_projector_and_the_teachers_classifier() -> None:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member("simkd", task, teacher)
    untouched = [p.detach().clone() for p in member.student.linear_classifier().parameters()]  # type: ignore[operator]
    member.begin_epoch()
    for batch in task.batches("main", 1):
        with torch.no_grad():
            outputs = teacher(batch.images)
        member.step(batch, outputs)
    method: Any = member.method
    batches = int(method.projector.bn1.num_batches_tracked)
    assert batches == len(list(task.batches("main", 1))), "measuring training images runs the projector no second time"
    record = engine.end_epoch(member, teacher)
    with torch.no_grad():
        hits = [
            (method.predicted(member.student(batch.images)).logits.argmax(dim=1) == batch.labels).sum()
            for batch in task.evaluation_batches("test")
        ]
    assert record.metrics["top1"] == pytest.approx(int(sum(hits)) / 24)
    after = member.student.linear_classifier().parameters()  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(untouched, after, strict=True))


def test_parameters_that_stay_are_counted() -> None:
    teacher = engine.teacher()
    member = engine.member("simkd", engine.task(), teacher)
    classifier = sum(p.numel() for p in teacher.linear_classifier().parameters())  # type: ignore[operator]
    projector = sum(p.numel() for p in member.method.parameters())
    assert member.method.kept_parameters() == projector + classifier > 0
    assert engine.member("kd", engine.task(), teacher).method.kept_parameters() == 0
    assert issubclass(get(next(iter(MEASURED_WITH))), SimKD)


def test_a_student_that_is_not_all_that_was_measured_is_not_handed_out(tmp_path: Path) -> None:
    run = replace(samples.row(), row="simkd", status="done", kept="all")
    with pytest.raises(
        BadRequest, match="is measured with a projector and the teacher's classifier, which its file lacks"
    ):
        student_path(Store(tmp_path), run)
