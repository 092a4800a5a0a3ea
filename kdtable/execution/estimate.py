"""Estimate how long a plan takes, from a few steps timed on this machine."""

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import psutil
import torch

from kdtable import tasks
from kdtable.distributed import ran_out_of_memory
from kdtable.execution.devices import DeviceSlot
from kdtable.execution.load_teacher import untrained_teacher
from kdtable.methods.objective import PRETRAIN
from kdtable.numerics import precision
from kdtable.numerics.layout import fix_threads, keep_freed_memory, on_device, to_device
from kdtable.numerics.names import split_precision
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import TeacherRef
from kdtable.tasks.base import Task, TaskBatch
from kdtable.training.build import build_member, build_student
from kdtable.training.cuda_graphs import CudaGraph
from kdtable.training.recording import WARM_UP
from kdtable.training.teacher import FrozenTeacher

#: Seconds that timing may take. Every student and every teacher is timed once even beyond it.
BUDGET: Final = 20.0
#: Steps longer than this (seconds) are timed once, without a warm-up.
LONG: Final = 1.0
#: An evaluation is a forward pass: about a third of a training step.
FORWARD: Final = 1 / 3

#: What determines a network's time: its name, the data set, the batch size, the precision.
Network = tuple[str, str, int, str]
#: What determines a step's time: row, student, name of the teacher.
Kind = tuple[str, Network, str | None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated time of a plan.

    Attributes:
        seconds: wall time on an otherwise idle machine.
        timed: number of kinds of runs with a timed step; the others count like the first timed one of their student.
        kinds: number of kinds of runs in the plan; kinds differ in row, student or teacher.
        failures: why runs of a kind cannot be trained here, in one line; they count as no time.
    """

    seconds: float
    timed: int
    kinds: int
    failures: Mapping[Kind, str] = field(default_factory=dict)


class Calibration:
    """Times steps of runs on demand, with random images and random weights.

    Args:
        device: the device to time.
        budget: seconds that timing may take.
        clock: returns seconds; by default this thread's CPU time on a CPU, so that other processes do not count, and
            wall time on other devices.
        cuda_graphs: whether to time steps as CUDA graphs.
    """

    def __init__(
        self,
        device: torch.device,
        budget: float = BUDGET,
        clock: Callable[[], float] | None = None,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        self._device = device
        self._cuda_graphs = cuda_graphs
        self._clock = clock or (time.thread_time if device.type == "cpu" else time.perf_counter)
        self._end = self._clock() + budget
        self._teachers: dict[Network, FrozenTeacher] = {}
        self._passes: dict[Network, float] = {}
        self._steps: dict[Kind, float] = {}
        self.failures: dict[Kind, str] = {}
        self._first: dict[Network, float] = {}

    @property
    def timed(self) -> int:
        """Number of kinds of runs with a timed step."""
        return len(self._steps)

    def teacher_pass(self, teacher: TeacherRef, run: Run) -> float:
        """Seconds of a teacher pass over a batch of ``run``."""
        key = _network(teacher.network, run)
        if key not in self._passes:
            task, batch = self._task(run)
            frozen = self._teacher(teacher, run, task)
            self._passes[key] = self._time(lambda: _discard(frozen.outputs(batch, frozenset())), [])
        return self._passes[key]

    def step(self, run: Run) -> float:
        """Seconds of a student's step, loss included."""
        kind, student = kind_of(run), _network(run.student, run)
        if kind in self._steps:
            return self._steps[kind]
        if student in self._first and self._clock() > self._end:
            return self._first[student]
        try:
            with within_free_memory():
                self._steps[kind] = self._timed_step(run)
        except (ValueError, MemoryError, RuntimeError) as error:
            short = ran_out_of_memory(error)
            if not isinstance(error, ValueError) and not short:
                raise
            self._steps[kind] = 0.0
            self.failures[kind] = "its step does not fit into this machine's memory" if short else str(error)
            return 0.0
        return self._first.setdefault(student, self._steps[kind])

    def _timed_step(self, run: Run) -> float:
        task, batch = self._task(run)
        frozen = self._teacher(run.teacher, run, task) if run.teacher else None
        task_of = cache(lambda name: self._task(run, name)[0])
        member = build_member(
            run.id,
            run.method,
            run.objective,
            run.recipe,
            student=build_student(run.student, run.data, run.seed),
            teacher=frozen.network if frozen else None,
            task=task,
            task_of=task_of,
            labels=torch.arange(run.data.train_count) % run.data.num_classes,
        )
        while member.stage.name not in ("main", PRETRAIN):
            member.advance()
        if member.task is not task:
            batch = next(member.task.batches(member.stage.name, 1))
        teacher_outputs = frozen.outputs(batch, task.features) if frozen else None
        if member.sweep_limit is not None:  # a method that must have seen the training set has seen this batch of it
            member.begin_sweep()
            member.observe(batch, teacher_outputs)
            member.method.end_sweep()
        member.begin_epoch()
        generators = [member.method.setting.generator]
        return self._time(lambda: member.step(batch, teacher_outputs), generators, member.method.recordable)

    def _task(self, run: Run, name: str = "") -> tuple[Task, TaskBatch]:
        chosen = precision.choose(run.precision, self._device)
        task = tasks.get(name or run.task).imitation(run.data, run.recipe, run.seed, chosen)
        return task, next(task.batches("main", 1))

    def _teacher(self, teacher: TeacherRef, run: Run, task: Task) -> FrozenTeacher:
        key = _network(teacher.network, run)
        if key not in self._teachers:
            network = untrained_teacher(teacher, run.data)
            self._teachers[key] = FrozenTeacher(to_device(network, self._device), task)
        return self._teachers[key]

    def _time(self, work: Callable[[], None], generators: list[torch.Generator], recordable: bool = True) -> float:
        """Seconds of a piece of work, repeated and recorded as a cohort does it."""
        with on_device(self._device):
            if self._cuda_graphs and recordable:
                work = self._recorded(work, generators)
            first = self._once(work)  # includes allocation, kernel selection or the first replay
            return first if self._device.type == "cpu" and first > LONG else self._once(work)

    def _recorded(self, work: Callable[[], None], generators: list[torch.Generator]) -> Callable[[], None]:
        """The replay of a piece of work, or the work itself if it cannot be recorded."""
        for _ in range(WARM_UP):
            work()
        graph = CudaGraph(self._device)
        try:
            graph.record(work, generators)
        except RuntimeError:
            return work
        return graph.replay

    def _once(self, work: Callable[[], None]) -> float:
        self._synchronise()
        started = self._clock()
        work()
        self._synchronise()
        return self._clock() - started

    def _synchronise(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


@contextmanager
def within_free_memory() -> Iterator[None]:
    """Let allocations beyond the free memory fail inside the block, before the system ends other processes for them."""
    process = psutil.Process()
    if not hasattr(process, "rlimit"):  # Linux has it
        yield
        return
    soft, hard = process.rlimit(psutil.RLIMIT_AS)
    room = process.memory_info().vms + psutil.virtual_memory().available
    process.rlimit(psutil.RLIMIT_AS, (room if soft == psutil.RLIM_INFINITY else min(soft, room), hard))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_AS, (soft, hard))


def _discard(_: object) -> None:
    """Discard a result."""


def _network(name: str, run: Run) -> Network:
    computed, _ = split_precision(run.precision)
    return name, run.data.split_key, run.recipe.batch_size, computed


def kind_of(run: Run) -> Kind:
    """The kind of a run; steps of the same kind take equally long."""
    return run.row, _network(run.student, run), run.teacher.network if run.teacher else None


def estimate(
    cohorts: Sequence[CohortPlan],
    at: Sequence[DeviceSlot],
    device: torch.device,
    calibration: Calibration | None = None,
    *,
    cuda_graphs: bool = False,
) -> Estimate:
    """Estimate the time of training cohorts in workers on these device slots.

    Finished epochs of checkpoints count too, and cached teachers count as if they computed every batch. Steps of early
    stages count like steps of the main stage.

    Args:
        cohorts: the cohorts to train.
        at: the workers' device slots.
        device: the device to time steps on.
        calibration: by default a new one.
        cuda_graphs: whether steps are recorded as CUDA graphs.
    """
    fix_threads()
    keep_freed_memory()
    calibration = calibration or Calibration(device, cuda_graphs=cuda_graphs)
    for run in _firsts(cohorts):
        calibration.step(run)
    # Workers on one GPU wait for each other, so they count as one worker.
    lanes = [len(slot.cores) for slot in at] if device.type == "cpu" else [1] * len({slot.device for slot in at})
    threads = sum(lanes) / len(lanes)
    ends = [0.0] * len(lanes)
    for cost in sorted((_cohort_seconds(cohort, calibration, threads) for cohort in cohorts), reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    kinds = len({kind_of(run) for cohort in cohorts for run in cohort.runs})
    return Estimate(max(ends), calibration.timed, kinds, calibration.failures)


def _firsts(cohorts: Iterable[CohortPlan]) -> list[Run]:
    """One run of every student; timing these first ensures that every student is timed within the budget."""
    found: dict[Network, Run] = {}
    for cohort in cohorts:
        for run in cohort.runs:
            found.setdefault(_network(run.student, run), run)
    return list(found.values())


def _cohort_seconds(cohort: CohortPlan, calibration: Calibration, threads: float) -> float:
    """Seconds of a cohort whose students and teacher run on so many threads."""
    tasks = [_run_seconds(run, calibration) for run in cohort.runs]
    if cohort.teacher:
        with_teacher = [run for run in cohort.runs if run.teacher]
        batches = with_teacher[0].data.train_count / with_teacher[0].recipe.batch_size
        longest = max(run.total_epochs for run in with_teacher)
        tasks.append(calibration.teacher_pass(cohort.teacher, with_teacher[0]) * batches * longest)
    return max(sum(tasks) / threads, *tasks)


def _run_seconds(run: Run, calibration: Calibration) -> float:
    evaluated = run.data.validation or run.data.test_count
    images = (run.data.train_count + FORWARD * evaluated) * run.total_epochs
    images += FORWARD * run.data.test_count if run.data.validation else 0
    return calibration.step(run) * images / run.recipe.batch_size
