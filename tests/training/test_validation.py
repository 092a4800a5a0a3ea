"""Runs with held-out images: these choose the epoch, and the test set is measured once, with its weights."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdtable.checkpoints import checkpoint
from kdtable.data.sets import ImageSet
from kdtable.data.validation import hold_out
from kdtable.recipes.record import EpochRecord, validated
from kdtable.store.records import choose
from kdtable.tasks.classification import Classification
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.training.test_promises import assert_same

#: A method without adaptors, one with banks of training images, and one that measures more than the student.
ROWS = ("kd", "crd", "simkd")
LAST = engine.RECIPE.epochs


def held_out(count: int = 12) -> ImageSet:
    images = engine.image_set(train=44)
    return replace(images, spec=hold_out(images.spec, count)).held_out()


class Sink(engine.Sink):
    """Also keeps the weights of every epoch, and the trained ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[tuple[str, int], dict[str, Any]] = {}
        self.trained: dict[str, dict[str, Any]] = {}
        self.parts: list[str] = []

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        super().epoch_done(member, record)
        self.weights[member.run_id, record.epoch] = copy.deepcopy(
            {"student": member.student.state_dict(), "method": member.method.state_dict()}
        )
        self.trained[member.run_id] = copy.deepcopy(member.trained_student())


def grid(rows: tuple[str, ...], sink: Sink) -> tuple[Classification, Cohort]:
    task, teacher = engine.task(held_out()), engine.teacher()
    members = [engine.member(row, task, teacher) for row in rows]
    return task, Cohort(task, FrozenTeacher(teacher, task), members, sink, workers=2)


@pytest.fixture(scope="module")
def company() -> Sink:
    sink = Sink()
    task, cohort = grid(ROWS, sink)
    passes = task.images.evaluation_batches

    def noted(part: Any, *arguments: Any) -> Any:
        sink.parts.append(part)
        return passes(part, *arguments)

    object.__setattr__(task.images, "evaluation_batches", noted)
    cohort.train()
    assert not sink.failures
    return sink


def history(sink: Sink, row: str, epoch: int = LAST) -> list[dict[str, Any]]:
    found: Any = sink.states[f"resnet8-{row}", epoch]["history"]
    return list(found)


def test_the_test_set_is_passed_once_after_the_last_epoch(company: Sink) -> None:
    assert [part for part in company.parts if part != "train"] == ["validation"] * LAST + ["test"]


@pytest.mark.parametrize("row", ROWS)
def test_every_epoch_is_measured_on_held_out_images_and_the_last_on_the_test(company: Sink, row: str) -> None:
    for record in history(company, row):
        assert {"validation-top1", "validation-top5", "train-top1"} <= record["metrics"].keys()
        assert ({"top1", "nll", "agreement"} <= record["metrics"].keys()) == (record["epoch"] == LAST)
        assert "validation-nll" not in record["metrics"]


@pytest.mark.parametrize("row", ROWS)
def test_the_weights_of_the_best_epoch_are_kept_and_tested(company: Sink, row: str) -> None:
    records = history(company, row)
    accuracies = [record["metrics"]["validation-top1"] for record in records]
    best = max(epoch for epoch, value in enumerate(accuracies, start=1) if value == max(accuracies))
    weights = company.weights[f"resnet8-{row}", best]
    assert_same(company.trained[f"resnet8-{row}"], dict(weights["student"]))
    # Measured anew by hand, on both parts.
    task, teacher = engine.task(held_out()), engine.teacher()
    member = engine.member(row, task, teacher)
    member.student.load_state_dict(weights["student"])
    member.method.load_state_dict(weights["method"])
    member.student.eval()
    member.method.eval()
    for part, found in (("validation", accuracies[best - 1]), ("test", records[-1]["metrics"]["top1"])):
        hits = images = 0
        for batch in task.evaluation_batches(part):  # type: ignore[arg-type]
            outputs = task.forward(member.student, batch, frozenset({"branches", "last"}))
            with torch.no_grad():
                hits += int((member.method.predicted(outputs).logits.argmax(dim=1) == batch.labels).sum())
            images += len(batch)
        assert found == hits / images


def test_the_last_epochs_own_weights_stay_in_its_checkpoint(company: Sink) -> None:
    for row in ROWS:
        run = f"resnet8-{row}"
        assert_same(dict(company.states[run, LAST]["student"]), company.weights[run, LAST]["student"])  # type: ignore[call-overload]


@pytest.mark.parametrize("row", ROWS)
def test_alone_or_in_company(company: Sink, row: str) -> None:
    alone = Sink()
    grid((row,), alone)[1].train()
    assert_same(alone.states[f"resnet8-{row}", LAST], company.states[f"resnet8-{row}", LAST])


@pytest.mark.parametrize("row", ROWS)
def test_continued_from_a_checkpoint(company: Sink, row: str, tmp_path: Path) -> None:
    """The state of epoch 2, through a file, leads to the same last state, best weights included."""
    run = f"resnet8-{row}"
    checkpoint.save(tmp_path / "c.pt", company.states[run, 2])
    sink = Sink()
    _, cohort = grid((row,), sink)
    (member,) = cohort.members
    member.load_state(checkpoint.load(tmp_path / "c.pt", member.state()))
    cohort.train()
    assert_same(sink.states[run, LAST], company.states[run, LAST])
    assert_same(sink.trained[run], company.trained[run])


def test_a_checkpoint_without_the_best_weights_is_refused(company: Sink, tmp_path: Path) -> None:
    state = {name: value for name, value in company.states["resnet8-kd", 2].items() if name != "best_student"}
    checkpoint.save(tmp_path / "c.pt", state)
    _, cohort = grid(("kd",), Sink())
    with pytest.raises(checkpoint.BadCheckpoint, match="has no best_student"):
        checkpoint.load(tmp_path / "c.pt", cohort.members[0].state())


def test_methods_that_index_training_images_see_the_smaller_set() -> None:
    _, cohort = grid(("crd",), Sink())
    (member,) = cohort.members
    assert len(member.method.setting.labels) == 32
    assert {len(b) for name, b in member.method.named_buffers() if "memory" in name or "bank" in name} <= {32}


def record(epoch: int, stage: str = "main", **metrics: float) -> EpochRecord:
    named = {name.replace("_", "-"): value for name, value in metrics.items()}
    return EpochRecord(stage, epoch, 0.1, 1.0, named, {}, 1.0, 1)


def test_of_equally_good_epochs_the_latest_is_chosen() -> None:
    main = Classification.metrics[0]
    records = [
        record(1, "hint", validation_top1=1.0),
        record(1, validation_top1=0.5, train_top1=0.1),
        record(2, validation_top1=0.75, train_top1=0.2),
        record(3, validation_top1=0.75, train_top1=0.3),
        record(4, validation_top1=0.25, train_top1=0.4, top1=0.6, nll=1.5),
    ]
    assert validated(records, main) == records[3]
    assert choose(records, main) == {
        "last": (4, {"validation-top1": 0.25, "train-top1": 0.4}),
        "validation": (3, {"validation-top1": 0.75, "train-top1": 0.3, "top1": 0.6, "nll": 1.5}),
    }
    assert choose(records[:4], main)["validation"] == (3, {"validation-top1": 0.75, "train-top1": 0.3})
    assert validated([record(1, top1=1.0)], main) is None
