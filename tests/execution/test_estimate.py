"""How long a plan would take: what is timed, and what is made of it. No test reads a real clock."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdtable.execution import estimate as module
from kdtable.execution.devices import DeviceSlot
from kdtable.execution.estimate import FORWARD, Calibration, estimate, kind_of
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher
from kdtable.training.member import Member
from kdtable.training.recording import WARM_UP
from tests.execution.samples import DATA, OTHER_TEACHER, RECIPE, TEACHER, cohort, run

CPU = torch.device("cpu")
ONE, TWO = DeviceSlot("cpu", (0,), 1), DeviceSlot("cpu", (0, 1), 1)


class Clock:
    """Goes on by a second whenever it is read, so that whatever is timed takes one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def calibration(budget: float = float("inf"), device: torch.device = CPU, *, cuda_graphs: bool = False) -> Calibration:
    return Calibration(device, budget, Clock(), cuda_graphs=cuda_graphs)


@pytest.fixture(autouse=True)
def _settings_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fix_threads", lambda: None)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: None)


# --- from steps to a plan ----------------------------------------------------------------------------------------


class Known(Calibration):
    """Knows every time."""

    def __init__(self) -> None:
        super().__init__(CPU)

    def step(self, run: Run) -> float:
        return {"vanilla": 1.0, "kd": 2.0, "at": 3.0, "fitnet-2stage": 2.0}[run.row]

    def teacher_pass(self, teacher: FileTeacher, run: Run) -> float:
        assert run.teacher == teacher
        return 0.5


#: Steps of a run of two epochs: four batches of 16 to train on, and the test images, forward only.
STEPS = 2 * (4 + FORWARD * 24 / 16)


def _seconds(*cohorts: CohortPlan, at: tuple[DeviceSlot, ...] = (ONE,), device: torch.device = CPU) -> float:
    return estimate(cohorts, at, device, Known()).seconds


def test_one_run() -> None:
    assert _seconds(cohort(run("vanilla"))) == STEPS


def test_the_teacher_is_asked_once_for_all() -> None:
    taught = cohort(run("vanilla"), run("kd"), run("at"))
    assert _seconds(taught) == pytest.approx((1 + 2 + 3) * STEPS + 0.5 * 2 * 4)


def test_threads_divide_the_work_but_no_single_run() -> None:
    taught = cohort(run("vanilla"), run("kd"), run("at"))
    assert _seconds(taught, at=(TWO,)) == pytest.approx(((1 + 2 + 3) * STEPS + 4) / 2)
    assert _seconds(cohort(run("at")), at=(TWO,)) == pytest.approx(3 * STEPS)


def test_earlier_stages_count_for_students_and_teacher() -> None:
    staged = run("fitnet-2stage")
    assert staged.total_epochs == 5
    assert _seconds(cohort(run("vanilla"), staged)) == pytest.approx((1 + 2 * 5 / 2) * STEPS + 0.5 * 5 * 4)


def test_cohorts_follow_one_another_on_one_worker() -> None:
    assert _seconds(cohort(run("vanilla")), cohort(run("vanilla", seed=2))) == 2 * STEPS


def test_workers_take_the_longest_cohorts_first() -> None:
    alone = [cohort(run("vanilla", seed=seed, recipe=replace(RECIPE, epochs=n))) for seed, n in enumerate((2, 4, 6, 8))]
    assert _seconds(*alone, at=(ONE, DeviceSlot("cpu", (1,), 1))) == 5 * STEPS  # 8 + 2 and 6 + 4 epochs
    assert _seconds(alone[0], at=(ONE, DeviceSlot("cpu", (1,), 1))) == STEPS


def test_workers_on_one_gpu_do_not_make_it_faster() -> None:
    alone = [cohort(run("vanilla", seed=seed)) for seed in (1, 2)]
    gpu, other = DeviceSlot("cuda:0", (0, 1), 2), DeviceSlot("cuda:1", (2, 3), 1)
    cuda = torch.device("cuda")
    assert _seconds(*alone, at=(gpu, gpu), device=cuda) == 2 * STEPS
    assert _seconds(*alone, at=(gpu, other), device=cuda) == STEPS


# --- what is timed -----------------------------------------------------------------------------------------------

SEVERAL = (run("vanilla"), run("kd"), run("at"), run("kd", "wrn_16_1"))


def test_runs_that_differ_in_the_seed_alone_are_of_one_kind() -> None:
    kinds = {kind_of(run(row, seed=seed)) for row in ("vanilla", "kd") for seed in (1, 2, 3)}
    assert len(kinds) == 2
    assert kind_of(run("kd")) != kind_of(run("kd", teacher=OTHER_TEACHER))
    assert kind_of(run("kd")) != kind_of(run("kd", recipe=replace(RECIPE, batch_size=8)))
    assert kind_of(run("kd")) == kind_of(run("kd", precision="fp32-cached"))


def test_every_kind_is_timed_once_as_long_as_there_is_time() -> None:
    clock = calibration()
    cost = estimate([cohort(*SEVERAL), cohort(*(replace(one, seed=2) for one in SEVERAL))], [ONE], CPU, clock)
    assert (cost.timed, cost.kinds) == (4, 4)
    assert cost.seconds == pytest.approx(2 * (4 * STEPS + 8))  # each step and each pass takes a second


def test_beyond_the_budget_every_student_is_timed_once() -> None:
    clock = calibration(budget=0)
    cost = estimate([cohort(*SEVERAL)], [ONE], CPU, clock)
    assert (cost.timed, cost.kinds) == (2, 4)
    assert cost.seconds == pytest.approx(4 * STEPS + 8)


def test_what_is_not_timed_counts_like_its_students_first() -> None:
    clock = calibration(budget=0)
    clock._time = lambda *_: 7.0  # type: ignore[method-assign]
    assert clock.step(run("kd")) == 7
    clock._time = lambda *_: 9.0  # type: ignore[method-assign]
    assert clock.step(run("at")) == 7
    assert clock.step(run("kd", "wrn_16_1")) == 9
    assert clock.timed == 2


def test_a_teacher_is_timed_once_whether_its_outputs_are_kept_or_not() -> None:
    clock = calibration()
    passes = []
    clock._time = lambda *_: passes.append(1) or 1.0  # type: ignore[method-assign,func-returns-value]
    for precision in ("fp32", "fp32-cached", "fp32-cached16"):
        assert clock.teacher_pass(TEACHER, run("kd", precision=precision)) == 1
    assert len(passes) == 1
    clock.teacher_pass(OTHER_TEACHER, run("kd"))
    assert len(passes) == 2


ROWS = ("vanilla", "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd", "kdsvd")


@pytest.mark.parametrize("row", [*ROWS, "crd+kd", "fitnet-2stage"])
def test_a_step_of_every_method_can_be_timed(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []
    step = Member.step

    def watched(member: Member, *batch_and_outputs: Any) -> None:
        stages.append(member.stage.name)
        step(member, *batch_and_outputs)

    monkeypatch.setattr(Member, "step", watched)
    assert calibration().step(run(row)) == 1
    assert stages == ["main", "main"]


def test_one_batch_may_be_all_images() -> None:
    whole = replace(RECIPE, batch_size=64)
    assert calibration().step(run("crd", recipe=whole)) == 1
    assert calibration().teacher_pass(TEACHER, run("kd", recipe=whole)) == 1


def test_a_teacher_that_is_not_there_can_be_timed() -> None:
    absent = MissingTeacher(TEACHER.network, TEACHER.mean, TEACHER.std)
    cost = estimate([cohort(run("kd", teacher=absent))], [ONE], CPU, calibration())
    assert cost.seconds == pytest.approx(STEPS + 8)


def test_what_cannot_be_built_takes_no_time_and_is_no_students_pace() -> None:
    clock = calibration(budget=0)
    assert clock.step(run("crd", data=replace(DATA, num_classes=1))) == 0
    assert clock.step(run("kd", data=replace(DATA, num_classes=1))) == 1


def test_what_does_not_fit_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Member, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    assert calibration().step(run("kd")) == 0
    monkeypatch.setattr(Member, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("another error")))
    with pytest.raises(RuntimeError, match="another error"):
        calibration().step(run("kd"))


class Graph:
    """Takes the place of a CUDA graph."""

    def __init__(self, events: list[str], device: object) -> None:
        self._events = events
        self._events.append(f"graph on {device}")

    def record(self, work: Callable[[], object], generators: list[torch.Generator]) -> None:
        self._events.append("record")

    def replay(self) -> None:
        self._events.append("replay")


class RefusingGraph(Graph):
    def record(self, work: Callable[[], object], generators: list[torch.Generator]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


GPU = torch.device("cuda:1")
WARM = ["step"] * WARM_UP


@pytest.mark.parametrize(
    ("graphs", "graph", "recordable", "warm_up", "timed"),
    [
        (False, Graph, True, ["step"], "step"),
        (True, Graph, True, [*WARM, "graph on cuda:1", "record", "replay"], "replay"),
        (True, Graph, False, ["step"], "step"),
        (True, RefusingGraph, True, [*WARM, "graph on cuda:1", "step"], "step"),
    ],
)
def test_on_a_gpu_what_is_replayed_in_training_is_timed_as_a_replay(
    graphs: bool,
    graph: type[Graph],
    recordable: bool,
    warm_up: list[str],
    timed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    clock = calibration(device=GPU, cuda_graphs=graphs)
    monkeypatch.setattr(module, "CudaGraph", lambda device: graph(events, device))
    monkeypatch.setattr(torch.cuda, "device", lambda device: events.append(f"on {device}") or nullcontext())
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append("synchronize"))
    assert clock._time(lambda: events.append("step"), [], recordable) == 1
    assert events[0] == "on cuda:1"
    assert [event for event in events[1:-3] if event != "synchronize"] == warm_up
    assert events[-3:] == ["synchronize", timed, "synchronize"]


@pytest.mark.parametrize(("first", "steps"), [(0.5, 2), (1.5, 1)])
def test_a_long_step_is_not_repeated(first: float, steps: int) -> None:
    times = iter([0.0, 0.0, first, 10.0, 10.25])
    clock = Calibration(CPU, clock=lambda: next(times))
    work: list[int] = []
    assert clock._time(lambda: work.append(1), []) == (0.25 if steps == 2 else first)
    assert len(work) == steps
