"""A second task goes through the same engine: cohorts, teachers, checkpoints, stages, store, report."""

import csv
import io
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from kdtable import data, methods, papers, tasks
from kdtable.checkpoints import checkpoint
from kdtable.data.sets import ImageSet
from kdtable.execution.memory import footprint
from kdtable.execution.run_grid import execute
from kdtable.methods import get
from kdtable.methods.base import Stage, Term
from kdtable.methods.objective import Objective
from kdtable.numerics.layout import to_device
from kdtable.numerics.precision import Precision
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teachers import read_teacher
from kdtable.recipes.recipe import Recipe
from kdtable.report.aggregate import comparisons
from kdtable.report.rendering import render
from kdtable.report.tables import comparison_table
from kdtable.store import Store
from kdtable.tasks.base import Task
from kdtable.training.build import build_member, build_student, build_teacher
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.cli.command import write_images, write_teacher
from tests.tasks.regression import Regression
from tests.training.test_promises import assert_same

RECIPE = Recipe(epochs=3, batch_size=32, lr=0.005, milestones=(2,))
#: Names of members and their loss terms: without a teacher, with its numbers, with its head on their embeddings.
TERMS: dict[str, dict[str, float]] = {
    "alone": {"mse": 1.0},
    "taught": {"mse": 0.5, "kd": 0.5},
    "heads": {"mse": 0.5, "heads": 0.5},
}
LAST = 3


class WithHeads(methods.get("kd")):  # type: ignore[misc]
    """Reads what a teacher's head makes of the student's own embedding."""

    student_features = frozenset({"embedding"})
    teacher_features = frozenset({"by_teacher"})


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """96 and 40 of the small handwritten digits."""
    whole = data.load(data.resolve("digits"), Path())
    assert isinstance(whole, ImageSet)
    spec = replace(whole.spec, train_count=96, test_count=40)
    return ImageSet(
        spec, whole.train_images[:96], whole.train_labels[:96], whole.test_images[:40], whole.test_labels[:40]
    )


def teacher(images: ImageSet) -> nn.Module:
    spec = images.spec
    torch.manual_seed(5)
    return to_device(build_teacher("resnet14", spec.num_classes, spec.mean, spec.std, spec.image_size), engine.CPU)


def member(name: str, task: Task, teacher: nn.Module) -> Member:
    kind = WithHeads if name == "heads" else get("kd")
    student = build_student("resnet8", task.images.spec, task.seed)
    return build_member(name, kind, Objective(TERMS[name]), RECIPE, student=student, teacher=teacher, task=task)


def train(
    names: list[str], images: ImageSet, change: Callable[[Member], object] = lambda _: None
) -> tuple[engine.Sink, list[Member]]:
    task, network, sink = Regression(images, RECIPE, 1, Precision("fp32", engine.CPU)), teacher(images), engine.Sink()
    members = [member(name, task, network) for name in names]
    for one in members:
        change(one)
    Cohort(task, FrozenTeacher(network, task), members, sink, workers=2).train()
    assert not sink.failures
    return sink, members


@pytest.fixture(scope="module")
def together(images: ImageSet) -> engine.Sink:
    return train(list(TERMS), images)[0]


def history(sink: engine.Sink, name: str) -> list[dict[str, Any]]:
    found: Any = sink.states[name, LAST]["history"]
    return list(found)


def test_students_learn_numbers(together: engine.Sink) -> None:
    first, *_, last = history(together, "alone")
    assert last["metrics"]["train-rmse"] < 0.8 * first["metrics"]["train-rmse"]


def test_every_epoch_is_measured_by_the_tasks_metrics(together: engine.Sink, images: ImageSet) -> None:
    for name, terms in TERMS.items():
        for record in history(together, name):
            assert record["metrics"].keys() == {"mae", "rmse", "train-mae", "train-rmse"}
            assert 0 < record["metrics"]["mae"] <= record["metrics"]["rmse"]
            assert record["terms"].keys() == terms.keys()
    student = build_student("resnet8", images.spec, 1).eval()
    student.load_state_dict(together.states["taught", LAST]["student"])  # type: ignore[arg-type]
    with torch.no_grad():
        errors = [
            student(image.unsqueeze(0) / 255).logits.mean().item() - label.item()
            for image, label in zip(images.test_images, images.test_labels, strict=True)
        ]
    measured = history(together, "taught")[-1]["metrics"]
    assert measured["mae"] == pytest.approx(sum(map(abs, errors)) / 40, rel=1e-4)
    assert measured["rmse"] == pytest.approx((sum(error**2 for error in errors) / 40) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_alone_or_in_a_cohort(name: str, together: engine.Sink, images: ImageSet) -> None:
    alone, _ = train([name], images)
    assert_same(alone.states[name, LAST], together.states[name, LAST])


@pytest.mark.parametrize("name", ["alone", "taught"])
def test_continued_from_a_checkpoint(name: str, together: engine.Sink, images: ImageSet, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", together.states[name, 1])
    state = checkpoint.load(tmp_path / "c.pt")
    resumed, _ = train([name], images, lambda one: one.load_state(state))
    assert (name, 1) not in resumed.states
    assert_same(resumed.states[name, LAST], together.states[name, LAST])


def test_what_depends_on_one_student_is_not_asked_of_the_cohorts_teacher(images: ImageSet) -> None:
    """The teacher's head sees the embedding of the very student, in each step."""
    asked = []
    task, network = Regression(images, RECIPE, 1, Precision("fp32", engine.CPU)), teacher(images)
    frozen, one = FrozenTeacher(network, task), member("heads", task, network)
    outputs = frozen.outputs
    frozen.outputs = lambda batch, needs: asked.append(needs) or outputs(batch, needs)  # type: ignore[method-assign]
    given = one.task.teacher_for
    seen = []

    def watching(network: Any, shared: Any, student: Any, batch: Any) -> Any:
        seen.append((student.embedding, given(network, shared, student, batch)))
        return seen[-1][1]

    task.teacher_for = watching  # type: ignore[method-assign]
    Cohort(task, frozen, [one], engine.Sink()).train()
    assert set(asked) == {frozenset()}
    assert len(seen) == 3 * RECIPE.epochs
    for embedding, found in seen:
        assert not found.by_teacher.requires_grad
        torch.testing.assert_close(found.by_teacher, network.fc(embedding).mean(dim=1).detach())


def test_a_member_knows_its_terms_by_the_task(images: ImageSet) -> None:
    task, network = Regression(images, RECIPE, 1, Precision("fp32", engine.CPU)), teacher(images)
    assert not member("alone", task, network).stage.uses_teacher
    assert member("taught", task, network).stage.uses_teacher
    assert not Regression.needs_teacher(methods.get("kd"), TERMS["alone"])
    assert Regression.needs_teacher(methods.get("kd"), TERMS["taught"])


def test_micro_batches_add_up_to_the_batch(images: ImageSet) -> None:
    """Without batch statistics, to rounding."""
    task, network = Regression(images, RECIPE, 1, Precision("fp32", engine.CPU)), teacher(images)
    grads = []
    for accumulate in (1, 3):
        task.ranks = replace(task.ranks, accumulate=accumulate)
        one = member("taught", task, network)
        one.begin_epoch()
        one.student.eval()
        batch = next(task.batches("main", 1))
        one.learner.update = lambda: None  # type: ignore[method-assign]
        one.step(batch, task.forward(network, batch, frozenset()))
        grads.append(torch.cat([p.grad.flatten() for p in one.student.parameters() if p.grad is not None]))
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


class Probe(methods.get("kd")):  # type: ignore[misc]
    """First the teacher's numbers, without labels; then the last layer alone, on classes."""

    def stages(self) -> tuple[Stage, ...]:
        early = Stage("numbers", RECIPE, (Term("kd", 1.0),), task="regression")
        return early, self.main_stage()

    def trained(self, stage: Stage, student: nn.Module) -> list[nn.Parameter]:
        return list((student if stage.name == "numbers" else student.get_submodule("fc")).parameters())

    def set_modes(self, stage: Stage, student: nn.Module) -> None:
        student.train(stage.name == "numbers")


def probing(images: ImageSet, state: Mapping[str, Any] | None = None) -> engine.Sink:
    """A run of two stages with two tasks, alongside one that has the second task alone."""

    @cache
    def task_of(name: str) -> Task:
        return tasks.get(name)(images, RECIPE, 1, Precision("fp32", engine.CPU))

    task, network, sink = task_of("classification"), teacher(images), engine.Sink()
    probe = build_member(
        "probe",
        Probe,
        Objective({"ce": 1.0}),
        RECIPE,
        student=build_student("resnet8", images.spec, 1),
        teacher=network,
        task=task,
        task_of=task_of,
    )
    members = [probe, engine.member("vanilla", task, None)]  # type: ignore[arg-type]
    if state is not None:
        members[0].load_state(dict(state))
    Cohort(task, FrozenTeacher(network, task), members, sink).train()
    assert not sink.failures
    return sink


def test_a_run_may_end_with_another_task_than_it_begins_with(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS.targets, "regression", "tests.tasks.regression:Regression")
    sink = probing(images)
    records = history(sink, "probe")
    assert [(record["stage"], record["epoch"]) for record in records] == [
        (stage, epoch) for stage in ("numbers", "main") for epoch in (1, 2, 3)
    ]
    assert all(record["metrics"].keys() == {"mae", "rmse", "train-mae", "train-rmse"} for record in records[:3])
    assert all(record["metrics"].keys() == {"top1", "top5", "train-top1"} for record in records[3:5])
    closing = {"agreement", "teacher-kl", "nll", "ece", "balanced", "majority"}
    assert records[5]["metrics"].keys() == {"top1", "top5", "train-top1"} | closing
    assert [record["cohort_size"] for record in records] == [1, 1, 1, 2, 2, 2]
    first, last = (sink.states["probe", epoch]["student"] for epoch in (1, 3))
    assert torch.equal(first["conv1.weight"], last["conv1.weight"])  # type: ignore[index]
    assert not torch.equal(first["fc.weight"], last["fc.weight"])  # type: ignore[index]


def test_memory_is_reckoned_by_the_tasks_own_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS.targets, "regression", "tests.tasks.regression:Regression")
    numbers, classes = (footprint("resnet8", 10, 8, 4, task) for task in ("regression", "classification"))
    assert numbers[:2] == classes[:2]
    assert 0 < numbers.outputs < classes.outputs


def test_runs_are_stored_and_reported_by_the_tasks_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best epoch is the one of the lowest error, which tables show in the metric's words."""
    monkeypatch.setitem(tasks.TASKS.targets, "regression", "tests.tasks.regression:Regression")
    write_images(tmp_path / "tiny.npz")
    write_teacher(tmp_path / "resnet14.pt")
    spec, pair = data.resolve(f"npz:{tmp_path / 'tiny.npz'}"), papers.Pair("resnet14", "resnet8")
    ref = read_teacher(tmp_path / "resnet14.pt", "resnet14", spec)
    both = (("vanilla", TERMS["alone"], None), ("kd", TERMS["taught"], ref))
    planned = [
        PlannedRun(
            pair, row, Run(row, "resnet8", spec, RECIPE, Objective(terms), seed, teacher=teacher, task="regression")
        )
        for row, terms, teacher in both
        for seed in (1, 2)
    ]
    results = tmp_path / "results"
    outcome = execute(planned, results, device=engine.CPU, data_root=tmp_path, progress=Mock())
    assert (outcome.done, outcome.failed) == (4, 0)
    with closing(Store(results, create=False)) as store:
        runs = {run.id: run for run in store.runs()}
        lowest: dict[str, list[float]] = {"vanilla": [], "kd": []}
        for one in planned:
            errors = [record.metrics["mae"] for record in store.history(one.run.id)]
            stored = runs[one.run.id]
            assert (stored.protocol.task, stored.protocol.metrics) == ("regression", Regression.metrics)
            assert stored.result is not None
            epoch, metrics = stored.result.chosen["best"]
            assert (epoch, metrics["mae"]) == (errors.index(min(errors)) + 1, min(errors))
            lowest[one.row].append(min(errors))
        (found,) = comparisons(store, papers.defaults, "best")
    table = comparison_table(found)
    lines = list(csv.DictReader(io.StringIO(render([table], "csv"))))
    assert sorted(float(line["value"]) for line in lines) == pytest.approx(sorted(chain(*lowest.values())))
    means = [f"{sum(values) / 2:.2f} ± " for values in lowest.values()]
    assert all(mean in render([table], "markdown") for mean in means)
    assert "mean absolute error" in render([comparison_table(found)], "markdown")
