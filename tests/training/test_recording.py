"""Recording and replaying steps, with a recorder that executes on replay what a CUDA graph would."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.recording import WARM_UP, MemberStep, Recordings
from kdtable.training.teacher import FrozenTeacher
from tests import engine
from tests.training.test_promises import assert_same

ROWS = ("vanilla", "kd", "at", "crd+kd", "fitnet-2stage")
#: Six batches and a short one, so that an epoch has steps before, after and beside the recording.
IMAGES = 16 * (WARM_UP + 3) + 8


class Recorder:
    """Keeps the work and does it on replay, on whatever lies in its inputs then."""

    made = 0
    replays = 0
    living = 0

    def __init__(self) -> None:
        type(self).made += 1
        type(self).living += 1

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> None:
        assert all(isinstance(generator, torch.Generator) for generator in generators)
        self._work = work

    def replay(self) -> None:
        type(self).replays += 1
        self._work()

    def reset(self) -> None:
        type(self).living -= 1


class Refuser(Recorder):
    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    made = living = 0


class Picky(Recorder):
    """Refuses the steps of one method."""

    made = replays = living = 0

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> None:
        if isinstance(work, MemberStep) and type(work.member.method).__name__ == "CRD":
            raise RuntimeError("no")
        super().record(work, generators)


class Empty(Recorder):
    """What is recorded on another device than the work's: a replay does nothing."""

    def replay(self) -> None:
        type(self).replays += 1


class Wrong(Recorder):
    """Does the work on other inputs than those that lie in the recorded tensors."""

    def replay(self) -> None:
        super().replay()
        if isinstance(self._work, MemberStep):
            with torch.no_grad():
                next(self._work.member.student.parameters()).mul_(1.001)


class Drawing(Recorder):
    """Draws other numbers than the work."""

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> None:
        super().record(work, generators)
        self._generators = generators

    def replay(self) -> None:
        super().replay()
        for generator in self._generators:
            torch.rand((), generator=generator)


def recordings(graph: type[Recorder] = Recorder, notes: list[str] | None = None) -> Recordings:
    graph.made = graph.replays = graph.living = 0
    return Recordings(lambda: graph, [].append if notes is None else notes.append)


def trained(recorded: Recordings | None, rows: Sequence[str] = ROWS) -> engine.Sink:
    images = engine.image_set(train=IMAGES)
    task, teacher, sink = engine.task(images), engine.teacher(images=images), engine.Sink()
    members = [engine.member(row, task, teacher) for row in rows]
    Cohort(task, FrozenTeacher(teacher, task), members, sink, workers=1, recordings=recorded).train()
    assert not sink.failures
    return sink


@pytest.fixture(scope="module")
def plain() -> engine.Sink:
    return trained(None)


def assert_plain(plain: engine.Sink, recorded: engine.Sink) -> None:
    assert recorded.states.keys() <= plain.states.keys()
    for key, state in recorded.states.items():
        assert_same(state, plain.states[key], str(key))


def test_replayed_steps_are_the_same_steps(plain: engine.Sink) -> None:
    notes: list[str] = []
    assert_plain(plain, trained(recordings(notes=notes)))
    epochs = len(plain.states)
    assert epochs == 3 * len(ROWS)
    # Of an epoch's seven steps the last is short and runs as it is; so do the warm-ups. The teacher's passes come to
    # it, of which the first fills the inputs.
    assert Recorder.replays > epochs * 3
    assert Recorder.made > epochs
    assert Recorder.living == 0, "every recording is freed at the end of its epoch"
    assert not notes


#: A recording that is not what it should be, and what the user is told of a step and of the teacher's pass.
BAD = {
    Refuser: ("operation not permitted when stream is capturing", "operation not permitted when stream is capturing"),
    Empty: ("other parameters than the step itself", "other outputs than the step itself"),
    Wrong: ("other parameters than the step itself", None),
    Drawing: ("other random numbers than the step itself", None),
}


@pytest.mark.parametrize("graph", BAD)
def test_a_bad_recording_is_found_and_the_user_told(plain: engine.Sink, graph: type[Recorder]) -> None:
    notes: list[str] = []
    assert_plain(plain, trained(recordings(graph, notes), ["crd+kd", "fitnet-2stage"]))
    of_step, of_pass = BAD[graph]
    assert len(notes) == len(set(notes)), "said once a run and stage, not in each epoch"
    steps = [note for note in notes if not note.startswith("the teacher pass")]
    assert len(steps) == 3  # one row has two stages
    assert any(note.startswith("CRD of resnet8 (stage main) runs kernel by kernel, not as") for note in steps)
    assert all(note.endswith(of_step) for note in steps)
    assert [note for note in notes if note not in steps] == (
        [f"the teacher pass runs kernel by kernel, not as a CUDA graph: {_reason(of_pass)}"] if of_pass else []
    )
    assert graph.replays <= len(notes) + 2 * 3 * WARM_UP, "none is replayed after its check"


def test_a_refused_member_leaves_the_others_recorded(plain: engine.Sink) -> None:
    notes: list[str] = []
    assert_plain(plain, trained(recordings(Picky, notes), ["crd+kd", "kd"]))
    assert notes == ["CRD of resnet8 (stage main) runs kernel by kernel, not as a CUDA graph: no"]
    of_kd_and_teacher = 2 * (IMAGES // 16 - WARM_UP) - 1  # an epoch; the pass fills the inputs once more
    assert Picky.replays == 3 * of_kd_and_teacher


def _reason(of_pass: str) -> str:
    return of_pass if of_pass.startswith("operation") else f"a replayed step ended with {of_pass}"


def test_the_first_recording_of_a_stage_is_checked_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdtable.training import recording

    checked: list[str] = []
    check = recording.checked_replay
    monkeypatch.setattr(
        recording, "checked_replay", lambda work, graph: checked.append(work.name) or check(work, graph)
    )
    trained(recordings(), ["fitnet-2stage"])
    assert sorted(checked) == [
        "FitNetTwoStage of resnet8 (stage hint)",
        "FitNetTwoStage of resnet8 (stage main)",
        "the teacher pass",
    ]


def test_a_step_that_changes_nothing_proves_nothing() -> None:
    """A learning rate of zero, or an empty step: a replay that does nothing looks the same."""
    from kdtable.training.replay_check import checked_replay

    class Nothing:
        name, generators = "nothing", ()
        weight = torch.ones(2)

        def __call__(self) -> None:
            pass

        def state(self) -> dict[str, list[torch.Tensor]]:
            return {"parameters": [self.weight]}

    graph = Recorder()
    graph.record(Nothing(), [])
    assert "changed none of its parameters" in str(checked_replay(Nothing(), graph))


def test_a_method_that_cannot_be_recorded_is_never_tried() -> None:
    notes: list[str] = []
    trained(recordings(notes=notes), ["kdsvd"])
    assert len(notes) == 1
    assert notes[0].startswith("KDSVD of resnet8 (stage main) runs kernel by kernel")
    assert Recorder.made == 3  # of the teacher pass, in each epoch


def test_an_epochs_tensors_are_freed_without_the_cyclic_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Any]] = []
    step = Member.step

    def watched(member: Member, batch: Any, outputs: Any) -> None:
        if not seen or seen[-1]() is not batch.images:
            seen.append(weakref.ref(batch.images))
        step(member, batch, outputs)

    monkeypatch.setattr(Member, "step", watched)
    gc.collect()
    gc.disable()
    try:
        trained(recordings(), ["kd"])
        assert seen
        assert not [one for one in seen if one() is not None]
    finally:
        gc.enable()


def test_pool_threads_compute_on_the_runs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdtable.numerics.layout import begin_thread, on_device
    from kdtable.training import cohort

    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device", lambda device: f"on {device}")
    second = torch.device("cuda:1")
    begin_thread(second)
    assert chosen == [second]
    assert on_device(second) == "on cuda:1"
    begun: list[Any] = []
    monkeypatch.setattr(cohort, "begin_thread", begun.append)
    trained(None, ["vanilla"])
    assert begun == [engine.CPU]
