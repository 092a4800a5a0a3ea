"""Process groups: several ranks train every run of a command, each on its own device (``--devices``, torchrun).

Rank 0 claims cohorts, stores results and reports progress. The other ranks receive each cohort, train their shards of
its batches, and write nothing. If a rank fails, the command or torchrun ends the process group. Under torchrun, rank 0
is the command itself.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist

from kdtable import data
from kdtable.data.sets import Images
from kdtable.distributed import SINGLE_PROCESS, Ranks, ran_out_of_memory
from kdtable.errors import BadRequest, Trouble
from kdtable.execution.assignment import Assignment
from kdtable.execution.keeper import Keeper
from kdtable.execution.train_cohort import train_in_parts
from kdtable.numerics import precision
from kdtable.numerics.layout import fix_threads
from kdtable.numerics.precision import choose_device
from kdtable.training.cohort import OutOfMemory

#: How long a rank waits for another live rank, for example while rank 0 measures a teacher.
PATIENCE: Final = timedelta(hours=1)

#: Tensors on GPUs go through NCCL, everything else through Gloo.
BACKEND: Final = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a command.

    Attributes:
        devices: the device of each rank, this one's first; under torchrun, only this one's.
        size: number of ranks.
        rank: this process's rank.
        started: whether torchrun has started all ranks.
    """

    devices: tuple[str, ...]
    size: int
    rank: int = 0
    started: bool = False


def process_group_of(devices: str | None, device: str = "auto") -> ProcessGroup:
    """The process group that ``--devices``, or else torchrun's environment, specifies.

    Args:
        devices: ``0,1`` (GPUs) or ``cpu,cpu``.
        device: under torchrun, the kind of device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        BadRequest: a device is missing or named twice, or both ``--devices`` and torchrun are used.
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
def joined(process_group: ProcessGroup | None, assignment: Assignment) -> Iterator[Ranks]:
    """Join torchrun's process group as rank 0 and broadcast the assignment; at the end, dismiss the other ranks.

    Raises:
        Trouble: this rank failed. torchrun ends the others.
    """
    if process_group is None:
        yield SINGLE_PROCESS
        return
    dist.init_process_group(BACKEND, timeout=PATIENCE)
    with _saying_why(0):
        ranks = Ranks(0, process_group.size)
        ranks.broadcast(assignment)
        yield ranks
        ranks.broadcast(None)
    dist.destroy_process_group()  # only on success: after a failure other ranks may never get here


def dismiss(process_group: ProcessGroup | None, assignment: Assignment) -> None:
    """Dismiss the ranks that torchrun has started: there is nothing to train."""
    if process_group is not None and process_group.started:
        with joined(process_group, assignment):
            pass


def follow(device: torch.device) -> None:
    """Train the cohorts that rank 0 broadcasts until there are no more; torchrun's ranks above 0 run this.

    Raises:
        Trouble: this rank failed. torchrun ends the others.
    """
    dist.init_process_group(BACKEND, timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    with _saying_why(ranks.rank):
        train_shards(ranks, device, ranks.broadcast(None))
    dist.destroy_process_group()


@contextmanager
def _saying_why(rank: int) -> Iterator[None]:
    try:
        yield
    except BadRequest:
        raise
    except Exception as error:
        raise rank_failed(rank, reason_of(error)) from error


def rank_failed(rank: int, reason: str) -> Trouble:
    """The command's error if a rank fails."""
    return Trouble(f"rank {rank} failed ({reason}): finished epochs are kept; see to that, and call again to go on")


def reason_of(error: Exception) -> str:
    """Why a rank failed, in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def out_of_memory(error: Exception) -> bool:
    """Whether a rank failed for lack of memory, so that a smaller cohort may fit."""
    return isinstance(error, OutOfMemory) or ran_out_of_memory(error)


def train_shards(ranks: Ranks, device: torch.device, assignment: Assignment) -> None:
    """Train this rank's shards of the cohorts that rank 0 broadcasts, until there are no more."""
    fix_threads()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    chosen = precision.choose(assignment.planned_runs[0].run.precision, device)
    sets: dict[str, Images] = {}
    while (cohort := ranks.broadcast(None)) is not None:
        spec = cohort.runs[0].data
        if spec.split_key not in sets:
            sets[spec.split_key] = data.load(spec, assignment.data_root)
        train_in_parts(cohort, Keeper(), assignment.results, sets[spec.split_key], chosen, ranks)
