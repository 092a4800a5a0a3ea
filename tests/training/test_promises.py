"""Promises 1 and 2: a run's result depends neither on its company nor on interruptions, to the bit on the CPU."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtable.training.cohort import Cohort, OutOfMemory
from kdtable.training.teacher import FrozenTeacher
from tests import engine

ROWS = ("vanilla", "kd", "at", "crd", "crd+kd")
#: Rows whose adaptors or decompositions are further chances for company to show.
OTHERS = ("fitnet", "sp", "cc", "vid", "rkd", "pkt", "nst", "kdsvd", "at+kd")
#: Several methods at once: adaptors, banks and draws; a sweep and a schedule; taps and KD.
OTHERS += ("at+crd", "dkd+nd", "fitnet+sp+kd")


def trained(rows: tuple[str, ...], *, workers: int = 2, students: tuple[str, ...] = ("resnet8",)) -> engine.Sink:
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    members = [engine.member(row, task, teacher, student) for row in rows for student in students]
    Cohort(task, FrozenTeacher(teacher, task), members, sink, workers=workers).train()
    return sink


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the bit, timings and company aside."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "cpu_seconds", "waited", "cohort_size"}:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b) or (a.isnan() & b.isnan()).all(), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def company() -> engine.Sink:
    return trained((*ROWS, *OTHERS), students=("resnet8", "wrn_16_1"))


@pytest.mark.parametrize("row", [*ROWS, *OTHERS])
@pytest.mark.parametrize("student", ["resnet8", "wrn_16_1"])
def test_alone_or_in_company(company: engine.Sink, row: str, student: str) -> None:
    alone = trained((row,), students=(student,), workers=1)
    last = (f"{student}-{row}", engine.RECIPE.epochs)
    assert_same(alone.states[last], company.states[last])


def test_methods_start_from_the_same_student_and_see_the_same_batches() -> None:
    task, teacher = engine.task(), engine.teacher()
    members = [engine.member(row, task, teacher) for row in ROWS]
    first = members[0].student.state_dict()
    for member in members[1:]:
        assert_same(dict(first), dict(member.student.state_dict()))


@pytest.mark.parametrize("row", [*ROWS, *OTHERS])
def test_continued_from_a_checkpoint(company: engine.Sink, row: str, tmp_path: Any) -> None:
    """The state of epoch 1, through a file, leads to the same last state."""
    from kdtable.checkpoints import checkpoint

    run_id = f"resnet8-{row}"
    checkpoint.save(tmp_path / "c.pt", company.states[run_id, 1])
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    member = engine.member(row, task, teacher)
    member.load_state(checkpoint.load(tmp_path / "c.pt"))
    assert member.next_epoch == ("main", 2)
    Cohort(task, FrozenTeacher(teacher, task), [member], sink).train()
    assert_same(sink.states[run_id, 3], company.states[run_id, 3])


@settings(max_examples=6, deadline=None)
@given(st.dictionaries(st.sampled_from(ROWS), st.integers(0, 2), min_size=2, max_size=3))
def test_members_join_at_their_own_epochs(starts: dict[str, int]) -> None:
    """Members that were interrupted at different epochs catch up in one cohort."""
    whole = trained(tuple(starts))
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    members = [engine.member(row, task, teacher) for row in starts]
    for member, epoch in zip(members, starts.values(), strict=True):
        if epoch:
            member.load_state(whole.states[member.run_id, epoch])  # type: ignore[arg-type]
    Cohort(task, FrozenTeacher(teacher, task), members, sink).train()
    for member in members:
        assert_same(sink.states[member.run_id, 3], whole.states[member.run_id, 3])


def test_a_member_that_diverges_ends_alone(company: engine.Sink) -> None:
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    good, bad = engine.member("kd", task, teacher), engine.member("at", task, teacher)
    with torch.no_grad():
        next(bad.student.parameters()).fill_(float("nan"))
    Cohort(task, FrozenTeacher(teacher, task), [good, bad], sink).train()
    assert sink.failures == {"resnet8-at": "the loss became NaN in epoch 1 of stage main (term ce, at)"}
    assert_same(sink.states["resnet8-kd", 3], company.states["resnet8-kd", 3])


def test_a_member_that_raises_ends_alone(company: engine.Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    good, bad = engine.member("vanilla", task, teacher), engine.member("kd", task, teacher)
    monkeypatch.setattr(bad, "step", lambda *_: (_ for _ in ()).throw(ArithmeticError("no solution")))
    Cohort(task, FrozenTeacher(teacher, task), [good, bad], sink).train()
    assert sink.failures == {"resnet8-kd": "no solution"}
    assert_same(sink.states["resnet8-vanilla", 3], company.states["resnet8-vanilla", 3])


@pytest.mark.parametrize("error", [MemoryError("none left"), RuntimeError("[enforce] can't allocate memory: 4 bytes")])
def test_a_cohort_without_memory_stops_and_one_run_without_memory_fails(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    good, bad = engine.member("vanilla", task, teacher), engine.member("kd", task, teacher)
    monkeypatch.setattr(bad, "step", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(OutOfMemory, match=str(error)[-6:]):
        Cohort(task, FrozenTeacher(teacher, task), [good, bad], sink).train()
    assert not sink.failures
    Cohort(task, FrozenTeacher(teacher, task), [bad], sink).train()
    assert sink.failures == {"resnet8-kd": str(error)}


def test_a_teacher_without_memory_stops_the_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    task, teacher = engine.task(), engine.teacher()
    frozen = FrozenTeacher(teacher, task)
    monkeypatch.setattr(frozen, "outputs", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))
    members = [engine.member(row, task, teacher) for row in ("kd", "at")]
    with pytest.raises(OutOfMemory, match="none left"):
        Cohort(task, frozen, members, engine.Sink()).train()


def test_no_member_changes_what_the_teacher_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    members = [engine.member(row, task, teacher) for row in ROWS]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    first = members[0]
    step = first.step

    def watching(batch: Any, teacher_outputs: Any) -> None:
        tensors = [
            batch.images,
            batch.labels,
            teacher_outputs.logits,
            teacher_outputs.embedding,
            *teacher_outputs.stages,
        ]
        seen.extend((tensor, tensor.clone()) for tensor in tensors)
        step(batch, teacher_outputs)

    monkeypatch.setattr(first, "step", watching)
    Cohort(task, FrozenTeacher(teacher, task), members, sink).train()
    assert len(seen) > 20
    assert all(torch.equal(tensor, copy) for tensor, copy in seen)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_what_a_cohort_keeps_of_the_teacher_is_what_its_members_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task, teacher, sink = engine.task(), engine.teacher(), engine.Sink()
    frozen = FrozenTeacher(teacher, task)
    asked = set()
    outputs = frozen.outputs
    monkeypatch.setattr(frozen, "outputs", lambda batch, needs: asked.add(needs) or outputs(batch, needs))
    Cohort(task, frozen, [engine.member("kd", task, teacher), engine.member("crd", task, teacher)], sink).train()
    assert asked == {frozenset({"embedding"}), frozenset()}, "the last evaluation reads the logits alone"


def test_vanilla_alone_makes_no_teacher_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    task, sink = engine.task(), engine.Sink()
    frozen = FrozenTeacher(engine.teacher(), task)
    monkeypatch.setattr(frozen, "outputs", lambda *_: pytest.fail("the teacher was asked"))
    Cohort(task, frozen, [engine.member("vanilla", task, None)], sink).train()
    assert not sink.failures
