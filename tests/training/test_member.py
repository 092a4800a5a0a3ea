"""One student in training: its records and its state."""

import copy
import math
from typing import Any

import pytest
import torch

from kdtable import papers
from kdtable.numerics.layout import fix_threads
from kdtable.recipes.record import EpochRecord
from kdtable.training.member import Member
from kdtable.training.step import Diverged
from tests import engine

KD = papers.load("crd").row("kd").terms


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    fix_threads()


def epoch(member: Member, teacher: torch.nn.Module) -> EpochRecord:
    member.begin_epoch()
    stage, number = member.next_epoch
    for batch in member.task.batches(stage, number):
        with torch.no_grad():
            teacher_outputs = teacher(batch.images)
        member.step(batch, teacher_outputs)
    return engine.end_epoch(member, teacher)


def flat(state: Any, where: str = "") -> dict[str, Any]:
    """The leaves of a nested state by their path."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{where}/{key}").items()}
    if isinstance(state, list):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{where}/{i}").items()}
    return {where: state}


def assert_equal_states(a: dict[str, Any], b: dict[str, Any]) -> None:
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys()
    for key, value in left.items():
        same = torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
        assert same, key


@pytest.mark.parametrize("row", ["vanilla", "crd+kd"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_state_round_trip(row: str, precision: str) -> None:
    task, teacher = engine.task(precision=precision), engine.teacher()
    member = engine.member(row, task, teacher)
    epoch(member, teacher)
    state = copy.deepcopy(member.state())
    other = engine.member(row, task, teacher)
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter.fill_(9.0)
    other.load_state(copy.deepcopy(state))
    assert_equal_states(other.state(), state)
    assert other.next_epoch == ("main", 2)
    assert other.history == member.history
    epoch(member, teacher)
    epoch(other, teacher)
    # Wall time aside.
    for end in (a := member.state(), b := other.state()):
        for record in end["history"]:
            record["seconds"] = 0.0
    assert_equal_states(a, b)


@pytest.mark.parametrize("row", ["vanilla", "crd", "ab", "ft", "fsp", "fitnet-2stage"])
def test_a_finished_member_is_done_after_a_round_trip(row: str) -> None:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member(row, task, teacher)
    while not member.done:
        epoch(member, teacher)
    assert [record.epoch for record in member.history if record.stage == "main"] == [1, 2, 3]
    other = engine.member(row, task, teacher)
    other.load_state(copy.deepcopy(member.state()))
    assert other.done
    assert other.history == member.history


def test_the_state_can_be_read_as_weights_only(tmp_path: Any) -> None:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member("crd+kd", task, teacher)
    epoch(member, teacher)
    torch.save(member.state(), tmp_path / "state.pt")
    assert_equal_states(torch.load(tmp_path / "state.pt", weights_only=True), member.state())


def test_a_record_says_what_was_seen() -> None:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member("kd", task, teacher)
    record = epoch(member, teacher)
    assert (record.stage, record.epoch, record.lr, record.cohort_size) == ("main", 1, 0.05, 1)
    assert record.terms.keys() == {"ce", "kd"}
    assert record.train_loss == pytest.approx(0.1 * record.terms["ce"] + 0.9 * record.terms["kd"])
    assert record.metrics.keys() == {"top1", "top5", "train-top1"}
    assert (record.metrics["train-top1"] * 40) == pytest.approx(round(record.metrics["train-top1"] * 40))
    assert record.metrics.items() >= task.evaluate(member.student).items()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_on_the_test_images(precision: str) -> None:
    """24 of them, the student in eval mode, distillation included."""
    task, teacher = engine.task(precision=precision), engine.teacher()
    member = engine.member("kd", task, teacher, test_loss=True)
    record = epoch(member, teacher)
    (batch,) = task.evaluation_batches("test")
    with torch.no_grad():
        student, teacher_outputs = (
            task.forward(network, batch, frozenset()) for network in (member.student.eval(), teacher)
        )
        expected = sum(
            weight * member.method.loss(name, student, teacher_outputs, batch) for name, weight in KD.items()
        )
    assert record.test_loss == pytest.approx(float(expected), rel=1e-6)
    assert epoch(engine.member("kd", task, teacher), teacher).test_loss is None


def test_a_loss_on_the_test_images_that_is_not_finite_is_none() -> None:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member("kd", task, teacher, test_loss=True)
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        broken.fc.weight.fill_(math.inf)
    member.begin_epoch()
    (batch, *_) = task.batches("main", 1)
    with torch.no_grad():
        teacher_outputs = teacher(batch.images)
    member.step(batch, teacher_outputs)
    assert engine.end_epoch(member, broken).test_loss is None


def test_the_mean_loss_is_over_images_not_batches() -> None:
    """40 images in batches of 16, 16 and 8."""
    task, teacher = engine.task(), engine.teacher()
    member = engine.member("vanilla", task, teacher)
    member.begin_epoch()
    total = 0.0
    for batch in task.batches("main", 1):
        twin = copy.deepcopy(member.student)
        total += torch.nn.functional.cross_entropy(twin(batch.images).logits, batch.labels, reduction="sum").item()
        member.step(batch, None)
    assert engine.end_epoch(member).train_loss == pytest.approx(total / 40, rel=1e-5)


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_divergence_names_its_term(value: float, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, teacher = engine.task(), engine.teacher()
    member = engine.member("kd", task, teacher)
    loss = member.learner.loss
    monkeypatch.setattr(
        member.learner, "loss", lambda name, *args: loss(name, *args) + (value if name == "kd" else 0.0)
    )
    with pytest.raises(Diverged, match=rf"became {word} in epoch 1 of stage main \(term kd\)"):
        epoch(member, teacher)
    assert member.history == []
