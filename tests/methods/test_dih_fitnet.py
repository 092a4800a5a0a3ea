"""The settings of two-stage FitNets that the DIH paper's repository differs in."""

from typing import Any

import pytest
import torch
from torch import nn

from kdtable import papers
from kdtable.methods.fitnet_2stage import FitNetParams, FitNetTwoStage
from kdtable.methods.parts.adaptors import Convolution
from kdtable.models.outputs import Outputs
from kdtable.training.build import build_student
from tests import engine
from tests.asking import aim

DIH = {"hint_group": 1, "regressor": "where-needed", "hint_modes": "all-but-last"}


def built(student: str = "resnet8", teacher: str = "resnet14", **params: Any) -> tuple[FitNetTwoStage, nn.Module]:
    task = engine.task()
    networks = [build_student(name, task.images.spec, 1) for name in (student, teacher)]
    method: Any = engine.method("fitnet-2stage", task, *networks, **params)
    return method, networks[0]


def in_train_mode(method: FitNetTwoStage, student: nn.Module) -> set[str]:
    """Children of the student with a batch norm in train mode, in the hint stage."""
    method.set_modes(method.stages()[0], student)
    norms = {name: m.training for name, m in student.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return {name.partition(".")[0] for name, training in norms.items() if training}


def test_the_defaults_are_the_benchmarks_and_are_not_written_down() -> None:
    assert not set(papers.load("crd").row("fitnet-2stage").params) & set(DIH)
    method, student = built()
    same, _ = built(hint_group=2, regressor="always", hint_modes="trained")
    assert method.hint == same.hint == 1
    assert isinstance(method.regress, Convolution)
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), same.parameters(), strict=True))
    assert in_train_mode(method, student) == in_train_mode(same, student) == {"bn1", "layer1", "layer2"}


def test_the_first_group_without_a_regressor() -> None:
    method, student = built(**DIH)
    assert not list(method.parameters())
    names = {id(p): name for name, p in student.named_parameters()}
    trained = {names[id(p)].partition(".")[0] for p in method.trained(method.stages()[0], student)}
    assert trained == {"conv1", "bn1", "layer1"}
    assert in_train_mode(method, student) == {"bn1", "layer1", "layer2"}
    assert in_train_mode(built(**{**DIH, "hint_modes": "trained"})[0], student) == {"bn1", "layer1"}


def test_a_regressor_where_widths_differ() -> None:
    method, _ = built("resnet8", "wide_resnet18", **DIH)
    assert isinstance(method.regress, Convolution)
    assert method.regress.conv.weight.shape[:2] == (64, 16)


def test_the_hint_alone_decides_whether_the_networks_fit() -> None:
    """Not the benchmark's hint, where another stage is asked for."""
    student, teacher = (
        Outputs(torch.zeros(1, 2), stages=tuple(torch.zeros(1, 2, height, height) for height in heights))
        for heights in ((8, 2), (8, 6))
    )
    reasons = [
        FitNetTwoStage.inapplicable_with(FitNetParams(hint_group=group), student, teacher, list) for group in (1, 2, 3)
    ]
    assert reasons[0] is None
    assert reasons[1] is not None
    assert "of height 2" in reasons[1]
    assert reasons[2] == "hint_group 3 is not there: a network has 2 stages"


@pytest.mark.parametrize("size", [32, 64])
def test_networks_for_one_size_of_images(size: int) -> None:
    task = engine.task(engine.image_set(size=size))
    student = build_student("dih_vgg11", task.images.spec, 1)
    method = engine.method("fitnet-2stage", task, student, student, **DIH)
    assert method.trained(method.stages()[0], student)


def test_a_group_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="hint_group 4 is not there: a network has 3 stages"):
        built(hint_group=4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hint_group": 0}, "hint_group must be positive"),
        ({"regressor": "never"}, "regressor is one of always, where-needed"),
        ({"hint_modes": "all"}, "hint_modes is one of trained, all-but-last"),
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aim(FitNetTwoStage, {}, change)
