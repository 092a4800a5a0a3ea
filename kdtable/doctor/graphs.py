"""Whether recorded steps are the same steps, whether a refusal harms others, and whether recordings are freed."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kdtable.doctor.check import Failure, need_cuda
from kdtable.doctor.parity import OF_WEIGHTS, error_of
from kdtable.doctor.rows import BATCH, member_of, rows, task_of, teacher_of
from kdtable.numerics import precision
from kdtable.recipes.record import EpochRecord
from kdtable.tasks.base import TaskBatch, TaskOutputs
from kdtable.training.cohort import Cohort
from kdtable.training.cuda_graphs import CudaGraphs
from kdtable.training.member import Member
from kdtable.training.recording import WARM_UP, Recordings

ROWS: Final = ("crd: vanilla", "crd: kd", "crd: at", "crd: crd", "crd: vid")
#: Warm-up, the recorded step, three replays, and a short batch.
IMAGES: Final = BATCH * (WARM_UP + 4) + BATCH // 2
#: Bytes by which memory may grow from epoch to epoch.
SLACK: Final = 2**20


class Watch:
    """A cohort's sink: keeps failures, and calls a function after each epoch of a member."""

    def __init__(self, after: Callable[[Member], object] = lambda member: None) -> None:
        self.failures: list[str] = []
        self._after = after

    def stepped(self, members: Sequence[Member], images: int) -> None:
        """See `kdtable.training.cohort.Sink`."""

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """See `kdtable.training.cohort.Sink`."""
        self._after(member)

    def failed(self, run_id: str, error: BaseException) -> None:
        """See `kdtable.training.cohort.Sink`."""
        self.failures.append(f"{run_id}: {error}")


def trained(
    device: torch.device,
    recordings: Recordings | None,
    watch: Watch,
    disturb: Callable[[list[Member]], object] = lambda members: None,
) -> dict[str, Tensor]:
    """Train the rows in one cohort for two epochs; return each one's weights by name.

    Raises:
        Failure: a member failed.
    """
    runs = {name: rows()[name] for name in ROWS}
    task = task_of(runs["crd: kd"], precision.choose("fp32", device), IMAGES)
    teacher = teacher_of(runs["crd: kd"], task)
    members = [member_of(run, task, teacher if run.teacher else None) for run in runs.values()]
    disturb(members)
    Cohort(task, teacher, members, watch, recordings=recordings).train()
    if watch.failures:
        raise Failure("; ".join(watch.failures))
    return {
        name: torch.cat([p.detach().cpu().double().flatten() for p in member.student.parameters()])
        for name, member in zip(runs, members, strict=True)
    }


def replays(device: torch.device, folder: Path) -> str:
    """Train a cohort with and without recording, over short batches and two epochs."""
    need_cuda(device, "steps are recorded")
    notes: list[str] = []
    plain = trained(device, None, Watch())
    again = trained(device, None, Watch())
    recorded = trained(device, Recordings(partial(CudaGraphs, device), notes.append), Watch())
    if notes:
        raise Failure("; ".join(notes))
    return _agreement(plain, recorded, again)


def refusals(device: torch.device, folder: Path) -> str:
    """Force one member's recording to be refused; the others are recorded, and all end as without recording."""
    need_cuda(device, "a recording is refused")
    notes: list[str] = []
    plain, again = trained(device, None, Watch()), trained(device, None, Watch())

    def disturb(members: list[Member]) -> None:
        first: Any = members[0]
        step = first.step

        def reading(batch: TaskBatch, outputs: TaskOutputs | None) -> None:
            step(batch, outputs)
            first.learner.sums[0].item()  # no graph can hold this

        first.step = reading

    recordings = Recordings(partial(CudaGraphs, device), notes.append)
    recorded = trained(device, recordings, Watch(), disturb)
    if len(notes) != 1:
        raise Failure(f"one refusal was forced, and there were {len(notes)}: {'; '.join(notes)}")
    return f"refused as forced ({notes[0]}); {_agreement(plain, recorded, again)}"


def freed(device: torch.device, folder: Path) -> str:
    """Record over five epochs without the cyclic collector; memory must not grow."""
    need_cuda(device, "recordings take memory")
    held: list[int] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            trained(device, Recordings(partial(CudaGraphs, device), lambda note: None), Watch())
            torch.cuda.synchronize(device)
            held.append(torch.cuda.memory_allocated(device))
    finally:
        gc.enable()
    if held[-1] > held[1] + SLACK:
        raise Failure(f"memory grew from {held[1]:,} to {held[-1]:,} bytes over {len(held)} cohorts")
    return f"memory stays at {held[-1]:,} bytes over {len(held)} recorded cohorts"


def _agreement(plain: dict[str, Tensor], recorded: dict[str, Tensor], again: dict[str, Tensor]) -> str:
    """The largest gap; a row that does not repeat itself may differ as much between recorded and plain.

    Raises:
        Failure: a row ends elsewhere when it is recorded.
    """
    gaps = {name: error_of(recorded[name], weights) for name, weights in plain.items()}
    own = {name: error_of(again[name], weights) for name, weights in plain.items()}
    wrong = [f"{name} by {gap:.1e}" for name, gap in gaps.items() if not gap <= max(OF_WEIGHTS, 4 * own[name])]
    if wrong:
        raise Failure(f"recorded steps end elsewhere: {'; '.join(wrong)}")
    return f"{len(gaps)} rows end as without recording, to {max(gaps.values()):.0e}"
