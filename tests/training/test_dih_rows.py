"""The DIH paper's rows in cohorts: company, interruptions, both modes of a teacher, and what is trained."""

import copy
from typing import Any

import pytest
import torch

from kdtable.checkpoints import checkpoint
from kdtable.numerics.layout import to_device
from kdtable.training.build import build_student
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import dih_rows, engine
from tests.training.test_promises import assert_same
from tests.training.test_recording import IMAGES, recordings

#: Rows that are trained together, by the teacher that they share. "tofd-eval" is "tofd" with its teacher in eval mode.
COHORTS = {
    "resnet14+heads": ("dih", "kd", "heads"),
    "resnet14+tofd": ("tofd", "kd", "tofd-eval", "vanilla", "tofd-teacher"),
    "resnet14": ("mhkd", "dml", "kd"),
}
CASES = [(teacher, row) for teacher, rows in COHORTS.items() for row in rows if row not in ("kd", "vanilla")]
LAST = engine.RECIPE.epochs


def member(row: str, task: Any, teacher: Any) -> Member:
    if row != "tofd-eval":
        return engine.member(row, task, teacher)
    student = to_device(build_student("resnet8+tofd", task.images.spec, task.seed), engine.CPU)
    return Member(row, student, engine.method("tofd", task, student, teacher, teacher_mode="eval"), task)


def trained(rows: tuple[str, ...], network: str, state: Any = None, workers: int = 1) -> dict[str, Any]:
    """The states of each row after its epochs."""
    task, teacher, sink = engine.task(), engine.teacher(network), engine.Sink()
    members = [member(row, task, teacher) for row in rows]
    if state is not None:
        members[0].load_state(state)
    ids = {row: m.run_id for row, m in zip(rows, members, strict=True)}
    before = copy.deepcopy(teacher.state_dict())
    Cohort(task, FrozenTeacher(teacher, task), members, sink, workers=workers).train()
    assert not sink.failures
    assert_same(before, dict(teacher.state_dict()))
    return {row: {epoch: state for (run, epoch), state in sink.states.items() if run == ids[row]} for row in rows}


@pytest.fixture(scope="module")
def company() -> dict[str, Any]:
    return {network: trained(rows, network, workers=2) for network, rows in COHORTS.items()}


@pytest.mark.parametrize(("network", "row"), CASES, ids=[row for _, row in CASES])
def test_alone_or_in_company(company: dict[str, Any], network: str, row: str) -> None:
    assert_same(trained((row,), network)[row][LAST], company[network][row][LAST])


@pytest.mark.parametrize("network", COHORTS)
def test_others_are_trained_as_without_these_rows(company: dict[str, Any], network: str) -> None:
    assert_same(trained(("kd",), network)["kd"][LAST], company[network]["kd"][LAST])


@pytest.mark.parametrize(("network", "row"), CASES, ids=[row for _, row in CASES])
def test_continued_from_a_checkpoint(company: dict[str, Any], network: str, row: str, tmp_path: Any) -> None:
    checkpoint.save(tmp_path / "c.pt", company[network][row][1])
    state = checkpoint.load(tmp_path / "c.pt")
    assert_same(trained((row,), network, state)[row][LAST], company[network][row][LAST])


def test_the_loss_on_the_test_images_is_told(company: dict[str, Any]) -> None:
    told = {row: company[network][row][LAST]["history"][-1]["test_loss"] for network, row in CASES}
    assert {row for row, loss in told.items() if loss is not None} == {"dih", "mhkd"}


@pytest.mark.parametrize("row", ["dih", "heads", "tofd", "dml"])
def test_replayed_steps_are_the_same_steps(row: str) -> None:
    sinks = []
    for recorded in (None, recordings()):
        images = engine.image_set(train=IMAGES)
        task, teacher, sink = engine.task(images), engine.teacher_of(row), engine.Sink()
        trained_member = engine.member(row, task, teacher)
        Cohort(task, FrozenTeacher(teacher, task), [trained_member], sink, workers=1, recordings=recorded).train()
        assert not sink.failures
        sinks.append(sink)
    assert_same(sinks[0].states[trained_member.run_id, LAST], sinks[1].states[trained_member.run_id, LAST])


def test_the_teachers_mode_matters(company: dict[str, Any]) -> None:
    train, evaluated = (company["resnet14+tofd"][row][LAST]["history"][0] for row in ("tofd", "tofd-eval"))
    assert train["terms"]["tofd"] != evaluated["terms"]["tofd"]
    assert train["terms"]["ce"] != evaluated["terms"]["ce"]  # from the second step on


def test_a_teacher_in_train_mode_answers_each_batch_by_itself() -> None:
    task, network = engine.task(), engine.teacher("resnet14+tofd")
    first, second, _ = task.batches("main", 1)
    needs = frozenset({"branches"})
    teacher = FrozenTeacher(network, task).in_train_mode()
    expected = FrozenTeacher(network, task).in_train_mode().outputs(second, needs)
    teacher.outputs(first, needs)
    outputs = teacher.outputs(second, needs)
    assert torch.equal(outputs.logits, expected.logits)
    assert not outputs.logits.requires_grad
    alone = copy.deepcopy(network).train()
    with torch.no_grad():
        assert torch.equal(alone(second.images).branches[0][0], outputs.branches[0][0])
    assert not network.training


@pytest.mark.parametrize("row", ["dih", "tofd", "mhkd"])
def test_every_method_starts_from_the_same_student(row: str) -> None:
    task = engine.task()
    plain = engine.member("vanilla", task, None).student.state_dict()
    own = engine.member(row, task, engine.teacher_of(row)).student.state_dict()
    kept = {key.removeprefix("backbone."): value for key, value in own.items() if not key.startswith("branches.")}
    assert_same(dict(plain), kept)


@pytest.mark.parametrize(("row", "count"), [("heads", 3), ("tofd-teacher", 3), ("kd", 0)])
def test_every_classifier_is_measured(row: str, count: int) -> None:
    task = engine.task(engine.image_set(train=40, test=300))
    student = engine.member(row, task, engine.teacher() if row == "kd" else None).student
    accuracy = task.evaluate(student)
    names = [f"branch{place_}-top1" for place_ in range(1, count + 1)]
    assert [name for name in accuracy if "branch" in name] == names
    hits = [0] * count
    with torch.no_grad():
        for image, label in zip(task.images.test_images, task.images.test_labels, strict=True):
            for place_, (logits, _) in enumerate(student(image.unsqueeze(0) / 255).branches):
                hits[place_] += int(logits.argmax() == label)
    assert [accuracy[name] for name in names] == pytest.approx([hit / 300 for hit in hits])


def test_records_have_the_accuracy_of_every_classifier(company: dict[str, Any]) -> None:
    for network, row in CASES:
        for record in company[network][row][LAST]["history"]:
            assert sum("branch" in name for name in record["metrics"]) == (
                3 if "+" in dih_rows.STUDENTS.get(row.removesuffix("-eval"), "") else 0
            )
