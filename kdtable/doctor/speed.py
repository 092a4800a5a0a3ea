"""How fast cohorts train on a GPU, with recorded steps and without, and how near to the measured matmul rate."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdtable import papers
from kdtable.doctor.check import need_cuda
from kdtable.doctor.graphs import Watch
from kdtable.doctor.rows import member_of, task_of, teacher_of
from kdtable.models.outputs import EVERYTHING
from kdtable.numerics import precision
from kdtable.numerics.layout import to_device
from kdtable.planning.given import GivenWeights
from kdtable.planning.request import DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.teachers import teacher_finder
from kdtable.tasks.base import TaskBatch, TaskOutputs, tensors_of
from kdtable.training.build import build_student
from kdtable.training.cohort import Cohort
from kdtable.training.cuda_graphs import CudaGraphs
from kdtable.training.member import Member
from kdtable.training.recording import Recordings
from kdtable.training.step import Trained

PAIRS: Final = ("resnet32x4:resnet8x4", "resnet56:resnet20")
BATCH: Final = 64
STEPS: Final = 60
#: Side of the square matrices whose product gives the rate to compare with.
SIDE: Final = 4096


def cohorts(device: torch.device, folder: Path) -> str:
    """Time steps of the thirteen methods' cohort, plain, recorded, and on streams of their own, in each precision."""
    need_cuda(device, "speed is measured")
    lines = []
    for pair in PAIRS:
        runs = _runs(pair)
        for name in ("fp32", "tf32", "bf16"):
            plain, recorded, streams = (_cohort_ms(runs, device, name, how) for how in ("plain", "recorded", "streams"))
            lines.append(
                f"{pair}, {len(runs)} methods, {name}: {plain:.1f} ms a batch, recorded {recorded:.1f}, "
                f"a stream each {streams:.1f}"
            )
    return "; ".join(lines)


def layouts(device: torch.device, folder: Path) -> str:
    """Time a student's forward and backward pass, channels-last and contiguous, against the matmul rate."""
    need_cuda(device, "speed is measured")
    lines = []
    for name in ("fp32", "tf32", "bf16"):
        chosen = precision.choose(name, device)
        peak = _matmul_rate(device, chosen)
        for pair in PAIRS:
            run = _runs(pair)[0]
            task = task_of(run, chosen, BATCH, BATCH)
            batch = next(task.batches("main", 1))
            student = build_student(run.student, run.data, 1).to(device)

            def step(network: torch.nn.Module = student) -> None:
                task.forward(network, batch, EVERYTHING).logits.sum().backward()  # noqa: B023  called in this turn

            with FlopCounterMode(display=False) as counter:
                step()
            contiguous = _ms(step, device)
            to_device(student, device)
            last = _ms(step, device)
            share = counter.get_total_flops() / (last / 1000) / peak
            lines.append(f"{run.student}, {name}: {last:.2f} ms (contiguous {contiguous:.2f}), {share:.0%} of matmul")
    return "; ".join(lines)


def _runs(pair: str) -> list[Run]:
    rows = papers.find_table("crd-1")[1].rows
    find = teacher_finder(Path("no teachers"), GivenWeights(), allow_missing=True)
    planned = resolve(Request([pair], rows, [1], data=DataRequest("digits")), find)
    return [one.run for one in planned if one.not_applicable is None]


def _cohort_ms(runs: list[Run], device: torch.device, name: str, how: str) -> float:
    """Milliseconds a batch of a cohort's second epoch of its main stages, evaluation included."""
    task = task_of(runs[0], precision.choose(name, device), BATCH * STEPS, BATCH)
    teacher = next(found for run in runs if (found := teacher_of(run, task)))
    members = [member_of(run, task, teacher if run.teacher else None) for run in runs]
    for member in members:
        while member.stage.name != "main":
            member.advance()
    ends: list[float] = []
    watch = Watch(lambda member: ends.append(time.perf_counter()))
    recordings = Recordings(partial(CudaGraphs, device), lambda note: None) if how == "recorded" else None
    for member in members if how == "streams" else ():
        on_own_stream(member, device)
    Cohort(task, teacher, members, watch, recordings=recordings).train()
    return (ends[-1] - ends[len(runs) - 1]) * 1000 / STEPS


def on_own_stream(member: Member, device: torch.device) -> None:
    """Let a member's steps run on a stream of their own, beside the others' and the next teacher pass."""
    learner: Any = member.learner
    step, end_epoch = learner.step, learner.end_epoch
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stepped(batch: TaskBatch, outputs: TaskOutputs | None) -> None:
        stream.wait_stream(torch.cuda.current_stream(device))
        for tensor in (*tensors_of(batch), *(() if outputs is None else tensors_of(outputs))):
            tensor.record_stream(stream)  # its memory is not used again before the step has read it
        with torch.cuda.stream(stream):
            step(batch, outputs)

    def ended() -> Trained:
        torch.cuda.current_stream(device).wait_stream(stream)
        trained: Trained = end_epoch()
        return trained

    learner.step, learner.end_epoch = stepped, ended


def _matmul_rate(device: torch.device, chosen: precision.Precision) -> float:
    """Operations a second of a square matrix product."""
    a = torch.rand(SIDE, SIDE, device=device)
    with chosen.autocast():
        return 2 * SIDE**3 / (_ms(lambda: a @ a, device) / 1000)


def _ms(work: Callable[[], object], device: torch.device, times: int = 20) -> float:
    """Milliseconds of a piece of work, on average, after a warm-up."""
    for _ in range(3):
        work()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) * 1000 / times
