"""Detectors go through the engine that classifiers go through: alone as in a cohort, and resumed, to the bit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdtable.checkpoints import checkpoint
from kdtable.data.detection.annotations import Annotated
from kdtable.data.detection.sets import DetectionSet
from kdtable.methods import get
from kdtable.methods.base import Method
from kdtable.methods.objective import Objective
from kdtable.models.detection.outputs import DetectorOutputs
from kdtable.numerics.layout import to_device
from kdtable.recipes.recipe import Recipe
from kdtable.tasks.detection import Detection
from kdtable.training.build import build_member, build_student, build_teacher
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.detection.small import CPU, RECIPE, detection, shapes
from tests.training.test_promises import assert_same

FAMILIES = ("fasterrcnn", "retinanet")
LAST = RECIPE.epochs


class Judged(Method):
    """Reads what both networks say of the same boxes, and one level of both FPNs."""

    term = "judged"
    student_features = teacher_features = frozenset({"class_logits", "levels"})

    def distillation(self, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        levels = (student.levels[0] - teacher.levels[0]).square().mean()
        return (student.class_logits - teacher.class_logits).square().mean() + levels


class Tapped(Method):
    """Reads the taps alone."""

    term = "tapped"
    student_features = teacher_features = frozenset({"taps"})

    def distillation(self, student: Any, teacher: Any, batch: Any) -> torch.Tensor:
        return sum((s.mean() - t.mean()).square() for s, t in zip(student.taps, teacher.taps, strict=True))


METHODS: dict[str, tuple[type[Method], dict[str, float]]] = {
    "vanilla": (get("vanilla", "detection"), {"detector": 1.0}),
    "judged": (Judged, {"detector": 1.0, "judged": 0.1}),
    "tapped": (Tapped, {"detector": 1.0, "tapped": 1.0}),
}


def teacher_of(family: str, task: Detection, width: int = 8) -> nn.Module:
    spec = task.images.spec
    torch.manual_seed(5)
    return to_device(build_teacher(f"{family}_w{width}", spec.num_classes, spec.mean, spec.std, spec.image_size), CPU)


def member(family: str, name: str, task: Detection, teacher: nn.Module, recipe: Recipe = RECIPE) -> Member:
    kind, terms = METHODS[name]
    student = build_student(f"{family}_w8", task.images.spec, task.seed)
    uses = teacher if name != "vanilla" else None
    return build_member(f"{family}-{name}", kind, Objective(terms), recipe, student=student, teacher=uses, task=task)


def train(
    family: str,
    names: Sequence[str],
    change: Callable[[Member], object] = lambda _: None,
    recipe: Recipe = RECIPE,
    images: DetectionSet | None = None,
) -> tuple[engine.Sink, list[Member]]:
    task, sink = detection(images, recipe=recipe), engine.Sink()
    teacher = teacher_of(family, task)
    members = [member(family, name, task, teacher, recipe) for name in names]
    for one in members:
        change(one)
    Cohort(task, FrozenTeacher(teacher, task), members, sink, workers=2).train()
    assert not sink.failures
    return sink, members


@pytest.fixture(scope="module")
def together() -> dict[str, engine.Sink]:
    return {family: train(family, list(METHODS))[0] for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_alone_or_in_a_cohort(family: str, name: str, together: dict[str, engine.Sink]) -> None:
    torch.manual_seed(11)  # whatever the global generator holds
    alone, _ = train(family, [name])
    key = f"{family}-{name}", LAST
    assert_same(alone.states[key], together[family].states[key])


@pytest.mark.parametrize(("family", "name"), [("fasterrcnn", "judged"), ("retinanet", "vanilla")])
def test_continued_from_a_checkpoint(family: str, name: str, together: dict[str, engine.Sink], tmp_path: Path) -> None:
    key = f"{family}-{name}"
    checkpoint.save(tmp_path / "c.pt", together[family].states[key, 1])
    state = checkpoint.load(tmp_path / "c.pt")
    resumed, _ = train(family, [name], lambda one: one.load_state(state))
    assert (key, 1) not in resumed.states
    assert_same(resumed.states[key, LAST], together[family].states[key, LAST])


def test_every_epoch_has_the_detectors_own_losses(together: dict[str, engine.Sink]) -> None:
    own = {"fasterrcnn": ("objectness", "rpn_box", "class", "box"), "retinanet": ("class", "box")}
    for family, names in own.items():
        for record in together[family].states[f"{family}-vanilla", LAST]["history"]:
            losses = [record["metrics"][f"train-{name}"] for name in names]
            assert sum(losses) == pytest.approx(record["terms"]["detector"], rel=1e-5)
            assert 0 < record["metrics"]["train-positives"] < 0.5
            assert 0 <= record["metrics"]["AP"] <= record["metrics"]["AP50"] <= 1


def test_a_cohort_shares_the_teachers_maps_and_not_its_judgement_of_proposals() -> None:
    """Each student's own proposals are judged; a RetinaNet's anchors are those of all."""
    for family, shared in (("fasterrcnn", False), ("retinanet", True)):
        task = detection()
        teacher = teacher_of(family, task)
        frozen = FrozenTeacher(teacher, task)
        batch = next(task.batches("main", 1))
        needs = task.shared_features(frozenset({"class_logits"}))
        outputs = frozen.outputs(batch, needs)
        assert needs == {"class_logits", "levels"}
        assert (outputs.class_logits is not None) == shared
        one = member(family, "judged", task, teacher)
        one.begin_epoch()
        found: DetectorOutputs = one.learner.forward(batch)
        judged = one.learner.teacher_for(found, outputs, batch)
        assert judged.class_logits.shape == found.class_logits.shape
        assert not judged.class_logits.requires_grad
        assert (judged is outputs) == shared


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_networks_agree_on_one_geometry(family: str) -> None:
    """The zero of distillation: student and teacher with the same weights differ in nothing."""
    task = detection()
    teacher = teacher_of(family, task)
    one = member(family, "judged", task, teacher)
    one.student.load_state_dict(teacher.state_dict())
    one.begin_epoch()
    batch = next(task.batches("main", 1))
    student = one.learner.forward(batch)
    shared = FrozenTeacher(teacher, task).outputs(batch, frozenset({"class_logits", "levels", "taps"}))
    judged = one.learner.teacher_for(student, shared, batch)
    torch.testing.assert_close(student.class_logits, judged.class_logits, rtol=1e-5, atol=1e-6)
    assert all(map(torch.equal, student.levels, judged.levels))


def test_the_teacher_is_never_in_train_mode() -> None:
    def watching(one: Member) -> None:
        step = one.step

        def stepped(*arguments: Any) -> None:
            assert not any(module.training for module in one.method.setting.teacher.modules())  # type: ignore[union-attr]
            step(*arguments)

        one.step = stepped  # type: ignore[method-assign]

    train("fasterrcnn", ["judged"], watching, replace(RECIPE, epochs=1))


# --- recipes by steps


def test_a_run_ends_at_its_step() -> None:
    """12 images in batches of 4 are 3 steps; 4 steps are one and a third epochs."""
    recipe = replace(RECIPE, iterations=4, warmup_iterations=2, warmup_factor=0.5, schedule="steps", milestones=(3,))
    recipe = recipe.in_steps(3)
    rates = []

    def watching(one: Member) -> None:
        update = one.learner.update

        def updated() -> None:
            rates.append(one.optimizer.param_groups[0]["lr"])
            update()

        one.learner.update = updated  # type: ignore[method-assign]

    sink, (one,) = train("retinanet", ["vanilla"], watching, recipe)
    assert recipe.epochs == 2
    assert rates == pytest.approx([0.002, 0.003, 0.004, 0.0004])
    assert [record.lr for record in one.history] == pytest.approx([0.004, 0.0004])
    assert (one.run_id, 2) in sink.states


def test_gradients_are_clipped() -> None:
    norms = []

    def watching(one: Member) -> None:
        step = one.optimizer.step

        def stepped(*arguments: Any) -> Any:
            grads = [p.grad for group in one.optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
            return step(*arguments)

        one.optimizer.step = stepped  # type: ignore[method-assign]

    train("retinanet", ["vanilla"], watching, replace(RECIPE, epochs=1, clip=0.05))
    assert norms == pytest.approx([0.05] * 3, rel=1e-3)


def test_images_without_boxes_train() -> None:
    images = shapes()
    part = images._parts["train"]
    empty = [Annotated.plain(one.size, [], []) for one in part.boxes]
    images._parts["train"] = replace(part, boxes=empty)
    for family in FAMILIES:
        sink, _ = train(family, ["judged"], recipe=replace(RECIPE, epochs=1), images=images)
        (record,) = sink.states[f"{family}-judged", 1]["history"]  # type: ignore[misc]
        assert record["metrics"]["train-box"] == 0.0
        assert record["metrics"]["train-positives"] == 0.0
