"""Networks and methods at their start."""

import copy

import pytest
import torch

from kdtable.training.build import build_student, build_teacher, network_shapes, output_shapes
from tests import engine

SPEC = engine.image_set().spec


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "ShuffleV1"])
def test_a_students_start_depends_on_seed_and_name_only(name: str) -> None:
    torch.manual_seed(1)
    first = build_student(name, SPEC, 3)
    torch.manual_seed(2)
    torch.rand(7)
    before = torch.get_rng_state()
    assert same(build_student(name, SPEC, 3), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(build_student(name, SPEC, 4), first)


@pytest.mark.parametrize("name", ["resnet8", "wrn_28_2"])
@pytest.mark.parametrize("kind", ["heads", "tofd"])
def test_a_student_with_extra_classifiers_starts_as_the_one_without(name: str, kind: str) -> None:
    plain, branched = build_student(name, SPEC, 3), build_student(f"{name}+{kind}", SPEC, 3)
    assert same(branched.backbone, plain)


def test_heads_are_made_for_the_images() -> None:
    spec = engine.image_set(size=40).spec
    shapes = network_shapes("resnet8+heads", 4, 40)
    assert [tuple(embedding.shape) for _, embedding in shapes.branches] == [(1, 25600), (1, 12800), (1, 6400)]
    teacher = build_teacher("resnet8+heads", 4, spec.mean, spec.std, 40)
    for network in (build_student("resnet8+heads", spec, 1), teacher):
        found = output_shapes(network, 40)
        assert [x.shape for x, _ in found.branches] == [(1, 4)] * 3
        assert [x.shape for _, x in found.branches] == [x.shape for _, x in shapes.branches]


def test_a_students_start_does_not_depend_on_what_was_built_before() -> None:
    first = build_student("resnet8", SPEC, 3)
    build_student("resnet14", SPEC, 3)
    build_teacher("resnet14", 4, SPEC.mean, SPEC.std)
    assert same(build_student("resnet8", SPEC, 3), first)


@pytest.mark.parametrize("row", ["vanilla", "kd", "at", "crd", "crd+kd"])
def test_a_students_start_does_not_depend_on_the_method(row: str) -> None:
    task, teacher = engine.task(), engine.teacher()
    assert same(engine.member(row, task, teacher).student, build_student("resnet8", SPEC, task.seed))


def test_a_methods_start_depends_on_seed_and_method_only() -> None:
    built = []
    for state, seed in ((1, 1), (2, 1), (1, 2)):
        task, teacher = engine.task(seed=seed), engine.teacher()
        torch.manual_seed(state)
        student = build_student("resnet8", SPEC, seed)
        before = torch.get_rng_state()
        built.append(engine.method("crd", task, student, teacher))
        assert torch.equal(torch.get_rng_state(), before)
    first, again, other = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in built)
    drawn = [key for key in first if not key.startswith("z_")]
    assert all(torch.equal(first[key], again[key]) for key in drawn)
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_a_row_with_kd_starts_its_adaptors_as_the_row_without() -> None:
    task, teacher = engine.task(), engine.teacher()
    student = build_student("resnet8", SPEC, 1)
    alone, combined = (engine.method(row, task, student, teacher) for row in ("crd", "crd+kd"))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), combined.parameters(), strict=True))


def test_a_teacher_is_frozen() -> None:
    teacher = build_teacher("resnet14", 4, SPEC.mean, SPEC.std)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_student_normalises_its_input() -> None:
    student = build_student("resnet8", SPEC, 1)
    assert not any("input" in key for key in student.state_dict())
    assert student.input_mean.flatten().tolist() == list(SPEC.mean)
    assert student.input_std.flatten().tolist() == list(SPEC.std)


@pytest.mark.parametrize("training", [True, False])
def test_finding_shapes_changes_nothing(training: bool) -> None:
    student = build_student("resnet8", SPEC, 1).train(training)
    before = copy.deepcopy(student.state_dict())
    shapes = output_shapes(student, 32)
    assert student.training == training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert shapes.logits.shape == (1, 4)
    assert shapes.embedding is not None
    assert shapes.embedding.shape == (1, 64)
    assert [tuple(x.shape) for x in shapes.stages] == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
