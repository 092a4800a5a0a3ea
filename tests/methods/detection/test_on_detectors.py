"""The methods on whole detectors: what goes wrong when two networks do not see one geometry, and where gradients go."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from kdtable import methods, papers
from kdtable.errors import BadRequest
from kdtable.methods.detection.affines import tap_affines
from kdtable.methods.detection.base import given
from kdtable.methods.objective import Objective
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs
from kdtable.models.uninitialised import uninitialised
from kdtable.numerics.layout import to_device
from kdtable.training.build import build_member, build_student
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher
from tests.detection.small import CPU, RECIPE, detection, shapes, two_images

FAMILIES = ("fasterrcnn", "retinanet")
ROWS = ("kd", "fitnet", "fgfi", "reviewkd", "dkd", "mgd", "dkd+reviewkd", "fitnet+kd")
IMAGES = shapes()
TASK = detection(IMAGES)


def network(name: str, seed: int = 1) -> Any:
    return build_student(name, IMAGES.spec, seed)


class Pair:
    """A student with the method of a row, and its teacher, by default with the student's own weights."""

    def __init__(self, row: str, family: str = "fasterrcnn", teacher: nn.Module | None = None, **params: Any) -> None:
        student = network(f"{family}_w8")
        given = teacher or copy.deepcopy(student)
        self.teacher: Any = to_device(cast(Any, given), CPU).eval().requires_grad_(False)
        settings = papers.load("detection").row(row)
        terms = settings.terms_for(f"{family}_w8", f"{family}_w8")
        kind = methods.get(row, "detection")
        objective = Objective.of(kind.hyper, terms, {**settings.params, **params})
        self.member: Member = build_member(
            "test", kind, objective, RECIPE, student=student, teacher=self.teacher, task=TASK
        )
        self.method, self.student = self.member.method, self.member.student
        self.stage = self.method.stages()[-1]
        self.method.set_modes(self.stage, self.student)

    def outputs(self, batch: DetectionBatch) -> tuple[DetectorOutputs, DetectorOutputs]:
        """The student's, and the teacher's as a cohort gives them to it."""
        student = TASK.forward(self.student, batch, self.stage.student_features)
        frozen = FrozenTeacher(self.teacher, TASK)
        shared = frozen.outputs(batch, TASK.shared_features(self.stage.teacher_features))
        if not self.stage.teacher_features & TASK.per_student_features:
            return student, shared
        with torch.no_grad():
            judged = TASK.teacher_for(self.teacher, shared, student, batch)
        assert judged is not None
        return student, judged

    def term(self, name: str, batch: DetectionBatch) -> Tensor:
        student, teacher = self.outputs(batch)
        return self.method.loss(name, cast(Any, student), cast(Any, teacher), cast(Any, batch))

    def match(self, batch: DetectionBatch) -> None:
        """Show a batch to a method that matches channels."""
        if self.method.sweep_before(self.stage, 1) is not None:
            self.method.begin_sweep()
            with torch.no_grad():
                self.method.observe(*cast(Any, self.outputs(batch)), cast(Any, batch))
            self.method.end_sweep()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", ["kd", "fitnet"])
def test_networks_with_equal_weights_have_no_loss(row: str, family: str) -> None:
    """On one geometry: had the teacher resized or filled up images itself, it would judge other pixels."""
    pair, batch = Pair(row, family), two_images()
    assert pair.term(row, batch).item() == 0
    assert Pair(row, family, network(f"{family}_w8", seed=2)).term(row, batch).item() > 0


def test_dkd_of_equal_weights_is_zero() -> None:
    assert Pair("dkd").term("dkd", two_images()).item() == pytest.approx(0, abs=1e-7)


def test_kd_trains_what_makes_the_class_logits_alone() -> None:
    pair = Pair("kd", teacher=network("fasterrcnn_w8", seed=2))
    pair.term("kd", two_images()).backward()
    reached = {name for name, parameter in pair.student.named_parameters() if parameter.grad is not None}
    for part in ("backbone.body", "backbone.fpn", "roi_heads.box_head", "roi_heads.box_predictor.cls_score"):
        assert any(name.startswith(part) for name in reached), part
    assert not any(name.startswith(("rpn.", "roi_heads.box_predictor.bbox_pred")) for name in reached)


def test_the_sampled_boxes_have_the_classes_of_the_heads() -> None:
    """Background is 0, and class 1 of the data set the column 2."""
    student, teacher = Pair("dkd").outputs(two_images())
    assert set(given(student.labels).tolist()) == {0, 2}
    assert given(student.class_logits).shape == given(teacher.class_logits).shape == (len(given(student.labels)), 4)


@pytest.mark.parametrize("row", ROWS)
def test_a_step_leaves_the_teacher_as_it_is(row: str) -> None:
    """Not even its mode: a method's ``train`` does not reach it, and it is no part of what is stored."""
    pair, batch = Pair(row, teacher=network("fasterrcnn_w8", seed=2)), two_images()
    before = copy.deepcopy(pair.teacher.state_dict())
    pair.match(batch)
    pair.method.train()
    losses = [pair.term(term.name, batch) for term in pair.stage.terms]
    torch.stack(losses).sum().backward()
    assert not any(module.training for module in pair.teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in pair.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    assert not any(name.startswith("setting") for name in pair.method.state_dict())
    assert all(loss.isfinite() and loss.item() > 0 for loss in losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_are_of_before_the_activation(family: str) -> None:
    """The ReLU behind them works in place; a copy keeps negative values, and passes gradients on."""
    pair = Pair("mgd", family)
    student, _ = pair.outputs(two_images())
    assert all((tap < 0).any() for tap in student.taps)
    student.taps[0].square().sum().backward()
    assert any(parameter.grad is not None for parameter in pair.student.backbone.body.parameters())  # type: ignore


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_stays_behind(family: str) -> None:
    pair = Pair("mgd", family)
    pair.outputs(two_images())
    modules = [*pair.student.modules(), *pair.teacher.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@pytest.mark.parametrize("row", ROWS)
def test_images_without_boxes(row: str) -> None:
    pair, batch = Pair(row, teacher=network("fasterrcnn_w8", seed=2)), two_images().part(slice(1, 2))
    assert not len(batch.boxes[0])
    pair.match(batch)
    losses = {term.name: pair.term(term.name, batch) for term in pair.stage.terms}
    assert all(loss.isfinite() for loss in losses.values())
    if row == "fgfi":
        assert losses["fgfi"].item() == 0


def test_margins_are_of_the_norms_before_the_taps() -> None:
    """Of frozen batch norms too, and of a MobileNetV2's blocks, which end in one."""
    widths = {
        "fasterrcnn_resnet18": [64, 128, 256, 512],
        "retinanet_resnet50": [256, 512, 1024, 2048],
        "fasterrcnn_mobilenetv2": [24, 32, 96, 320],
        "fasterrcnn_w8": [8, 16],
    }
    for name, expected in widths.items():
        affines = tap_affines(uninitialised(name, 3, 64))
        assert [len(weight) for weight, _ in affines] == [len(bias) for _, bias in affines] == expected


def test_matching_groups_the_teachers_channels() -> None:
    """A teacher of twice the width: each student channel owns two, and none is owned twice."""
    pair, batch = Pair("mgd", teacher=network("fasterrcnn_w16", seed=2)), two_images()
    pair.match(batch)
    for stage, width in enumerate((16, 32)):
        groups = pair.method.get_buffer(f"groups{stage}")
        assert sorted(groups.flatten().tolist()) == list(range(width))


# --- why a method cannot be run ----------------------------------------------------------------------------------


def blank(name: str) -> DetectorOutputs:
    return TASK.apply(uninitialised(name, 3, 64), TASK.probe(64), frozenset())


@pytest.mark.parametrize(
    ("row", "teacher", "student", "reason"),
    [
        ("kd", "fasterrcnn_w8", "retinanet_w8", "the student is a RetinaNet, which proposes no boxes"),
        ("kd", "retinanet_w8", "fasterrcnn_w8", "the teacher is a RetinaNet, which has no RoI heads"),
        ("dkd", "retinanet_w8", "retinanet_w8", "it divides a softmax over classes and background"),
        ("fitnet", "fasterrcnn_resnet18", "fasterrcnn_w8", "the student's FPN has 3 levels and the teacher's 5"),
        ("fgfi", "fasterrcnn_resnet18", "fasterrcnn_w8", "the student's FPN has 3 levels and the teacher's 5"),
        ("reviewkd", "retinanet_resnet18", "fasterrcnn_resnet18", "at level 0 .from 0. the student's map is 16 x 16"),
        ("mgd", "fasterrcnn_resnet18", "fasterrcnn_w8", "the student has 2 feature maps to compare"),
        ("fitnet+kd", "fasterrcnn_w8", "retinanet_w8", "kd cannot: the student is a RetinaNet"),
    ],
)
def test_why_a_method_cannot_be_run(row: str, teacher: str, student: str, reason: str) -> None:
    found = methods.get(row, "detection").inapplicable(cast(Any, blank(student)), cast(Any, blank(teacher)))
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found)


@pytest.mark.parametrize("row", ["kd", "fitnet", "fgfi", "reviewkd", "mgd"])
def test_retinanets_can_have_the_others(row: str) -> None:
    kind = methods.get(row, "detection")
    assert kind.inapplicable(cast(Any, blank("retinanet_w8")), cast(Any, blank("retinanet_w16"))) is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("at", "method 'at' is not one of detection, whose methods are vanilla, kd, fitnet, fgfi"),
        ("at+kd", "method 'at' is not one of detection"),
        ("kd+ls", "only classifiers' logits can be standardised; write kd"),
        ("vanilla+kd", "vanilla is the student alone"),
    ],
)
def test_names_that_are_no_methods_on_detectors(name: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        methods.get(name, "detection")


def test_methods_on_detectors_alone_are_none_of_classifiers() -> None:
    with pytest.raises(BadRequest, match="method 'fgfi' is for detectors"):
        methods.get("fgfi")


def test_a_level_or_factors_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="there is no FPN level 3: the networks have levels 0 to 2"):
        Pair("fitnet", levels="0,3")
    with pytest.raises(ValueError, match="there are 4 factors for 2 stages"):
        Pair("mgd", factors="1,2,3,4")
    with pytest.raises(ValueError, match="factors divide"):
        Pair("mgd", factors="0")
