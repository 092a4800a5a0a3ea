"""Several processes that train every run of a command together, each on a device of its own (``--devices``, torchrun).

Rank 0 is the command: it plans, claims, keeps results and shows progress. The others are told each cohort and train
their shares of its batches; they write nothing.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Final

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from kdtable.distributed import SINGLE_PROCESS, Ranks
from kdtable.errors import BadRequest
from kdtable.execution.assignment import Assignment
from kdtable.execution.interruptions import deaf_to_interruptions, end_with_parent
from kdtable.hardware import divided
from kdtable.numerics.precision import choose_device
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.recipes.record import EpochRecord
from kdtable.training.member import Member

if TYPE_CHECKING:
    from kdtable.data.protocols import Images

#: How long a process waits for another one that still lives, as while rank 0 measures a teacher.
PATIENCE: Final = timedelta(hours=1)

#: Tensors on GPUs go through NCCL, everything else through Gloo.
_BACKEND: Final = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a command.

    Attributes:
        devices: of each rank, this one's first; under torchrun, of this one alone.
        size: number of processes.
        rank: of this one.
        started: whether torchrun has started all of them.
    """

    devices: tuple[str, ...]
    size: int
    rank: int = 0
    started: bool = False


def process_group_of(devices: str | None, device: str = "auto") -> ProcessGroup:
    """The processes that ``--devices``, or else torchrun's environment, asks for.

    Args:
        devices: ``0,1`` (GPUs) or ``cpu,cpu``.
        device: under torchrun, the kind of device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        BadRequest: a device that is not there or is named twice, or both ways at once.
    """
    if devices is None:
        size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
        kind = choose_device(device).type
        own = kind if kind == "cpu" else f"{kind}:{os.environ.get('LOCAL_RANK', '0')}"
        return ProcessGroup((own,), size, rank, started=True)
    if "RANK" in os.environ:
        raise BadRequest("torchrun has chosen the devices already: leave out --devices")
    names = [name.strip() for name in devices.split(",")]
    if twice := next((name for name in names if name != "cpu" and names.count(name) > 1), None):
        raise BadRequest(f"--devices names GPU {twice} twice")
    return ProcessGroup(tuple(map(_device, names)), len(names))


def _device(name: str) -> str:
    if name == "cpu":
        return name
    if not name.isdecimal():
        raise BadRequest(f"--devices takes numbers of GPUs (0,1) or cpu,cpu, not '{name}'")
    if int(name) >= torch.cuda.device_count():
        raise BadRequest(f"--devices names GPU {name}, and there are {torch.cuda.device_count()} here")
    return f"cuda:{name}"


@contextmanager
def gathered(process_group: ProcessGroup | None, assignment: Assignment) -> Iterator[Ranks]:
    """All processes of a team, who know the assignment; at the end the others go home.

    Raises:
        Trouble: one of them is gone.
    """
    if process_group is None or (process_group.size == 1 and not process_group.started):
        yield SINGLE_PROCESS
        return
    children: list[BaseProcess] = []
    try:
        if process_group.started:
            dist.init_process_group(_BACKEND, timeout=PATIENCE)
        else:
            children = _started(process_group)
        ranks = Ranks(0, process_group.size)
        ranks.broadcast(assignment)
        yield ranks
        ranks.broadcast(None)
    except BaseException:
        for child in children:
            child.terminate()
        raise
    finally:
        for child in children:
            child.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def dismiss(process_group: ProcessGroup | None, assignment: Assignment) -> None:
    """Let the processes that torchrun has started go home: there is nothing to train."""
    if process_group is not None and process_group.started:
        with gathered(process_group, assignment):
            pass


def _started(process_group: ProcessGroup) -> list[BaseProcess]:
    store = TCPStore("127.0.0.1", 0, process_group.size, is_master=True, wait_for_workers=False)
    context = get_context("spawn")  # a fork would copy torch's threads half
    children: list[BaseProcess] = []
    with deaf_to_interruptions():
        for rank in range(1, process_group.size):
            arguments = (rank, process_group.size, store.port, process_group.devices[rank])
            # Not as a daemon, which could start no processes to decode images.
            children.append(context.Process(target=_join, args=arguments))
            children[-1].start()
    dist.init_process_group(_BACKEND, store=store, rank=0, world_size=process_group.size, timeout=PATIENCE)
    return children


def _join(rank: int, size: int, port: int, device: str) -> None:
    """One of the processes that the command started."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):  # so that not every process decodes images on all cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, divided(cores, min(size, len(cores)))[rank % len(cores)])
    store = TCPStore("127.0.0.1", port, size)
    dist.init_process_group(_BACKEND, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _follow(Ranks(rank, size), torch.device(device))


def follow(device: torch.device) -> None:
    """Train what rank 0 says until it says no more: what torchrun's other processes do instead of the command."""
    dist.init_process_group(_BACKEND, timeout=PATIENCE)
    try:
        _follow(Ranks(dist.get_rank(), dist.get_world_size()), device)
    finally:
        dist.destroy_process_group()


def _follow(ranks: Ranks, device: torch.device) -> None:
    from kdtable import data
    from kdtable.execution.train_cohort import train_in_parts
    from kdtable.numerics import precision
    from kdtable.numerics.layout import fix_threads

    fix_threads()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    assignment: Assignment = ranks.broadcast(None)
    chosen = precision.choose(assignment.planned_runs[0].run.precision, device)
    sets: dict[str, Images] = {}
    while (cohort := ranks.broadcast(None)) is not None:
        spec = cohort.runs[0].data
        if spec.key not in sets:
            sets[spec.key] = data.load(spec, assignment.data_root)
        train_in_parts(cohort, SilentKeeper(ranks), assignment.results, sets[spec.key], chosen, ranks)


class SilentKeeper:
    """The keeper of a rank that keeps nothing: it learns from rank 0 where a run is, and what is left of a cohort."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def stepped(self, members: Sequence[Member], images: int) -> None:
        """Rank 0 tells of it."""

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """Rank 0 keeps it."""

    def failed(self, member: Member, error: BaseException) -> None:
        """Rank 0 tells of it."""

    def fail(self, run_id: str, error: BaseException) -> None:
        """Rank 0 tells of it."""

    def note(self, text: str) -> None:
        """Rank 0 tells of it."""

    def resume(self, member: Member) -> None:
        """Rank 0 finds the checkpoint, and sends it."""

    def left(self, cohort: CohortPlan) -> tuple[Run, ...]:
        """Rank 0 knows."""
        return ()

    def measure(self, cohort: CohortPlan, *_: object) -> None:
        """Rank 0 measures the teacher."""
