"""Estimate, on the safe side, how many runs fit into a device's memory at once."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import psutil
import torch

from kdtable import models, tasks
from kdtable.hardware import available_cores
from kdtable.models.outputs import EVERYTHING
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run

#: Usable fraction of free memory; the rest is for what the estimate omits: adaptors, losses, data set, fragmentation.
SHARE: Final = 0.6
#: Float32 copies of a student: weights, gradients, momentum, and the copy that a checkpoint is written from.
COPIES: Final = 4
#: A backward pass holds gradients of feature maps beside the maps themselves.
BACKWARD: Final = 1.5
#: Folder of a container's memory limit and use on Linux (cgroups, version 2).
_CONTAINER: Final = Path("/sys/fs/cgroup")


def fitting(cohort: CohortPlan, device: torch.device, sharers: int = 1) -> Iterator[CohortPlan]:
    """Split a cohort into parts that fit into free memory, in order; a run that is too large becomes a part alone.

    Args:
        cohort: the cohort to split.
        device: the device whose free memory counts.
        sharers: number of processes that share the device, this one included.
    """
    room = SHARE * free_memory(device) / sharers
    part: list[Run] = []
    for run in cohort.runs:
        if part and needed([*part, run], device) > room:
            yield cohort.only(part)
            part = []
        part.append(run)
    yield cohort.only(part)


def halves(cohort: CohortPlan) -> tuple[CohortPlan, CohortPlan]:
    """Split a cohort of at least two runs in two."""
    middle = len(cohort.runs) // 2
    return cohort.only(cohort.runs[:middle]), cohort.only(cohort.runs[middle:])


def needed(runs: list[Run], device: torch.device) -> float:
    """Peak bytes of training these runs in one cohort.

    On a CPU only as many students as threads compute at once; on a GPU each recorded step keeps its own memory.
    """
    own = [_student(run) for run in runs]
    maps = sorted((maps for _, maps in own), reverse=True)
    at_once = available_cores() if device.type == "cpu" else len(maps)
    return COPIES * sum(weights for weights, _ in own) + BACKWARD * sum(maps[:at_once])


def _student(run: Run) -> tuple[int, int]:
    micro_batch = -(-run.recipe.batch_size // run.sharding.parts)
    return footprint(run.student, run.data.num_classes, run.data.image_size, micro_batch, run.task)


@lru_cache(maxsize=256)
def footprint(
    name: str, num_classes: int, image_size: int, batch_size: int, task: str = "classification"
) -> tuple[int, int]:
    """Bytes of a network's weights, and of what a forward pass saves for the backward pass, in float32.

    Counted on torch's meta device, so nothing is computed.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    kind = tasks.get(task)
    with torch.device("meta"):
        network = models.build(name, num_classes, image_size=image_size)
        weights = sum(p.untyped_storage().nbytes() for p in network.parameters())
        own = {p.untyped_storage()._cdata for p in network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = kind.apply(network, kind.probe(image_size, batch_size), EVERYTHING)
    maps = sum(size for key, size in kept.items() if key not in own)
    del outputs  # held until here, so that no counted storage was freed and its address reused
    return weights, maps


def free_memory(device: torch.device) -> float:
    """Free bytes on a device, within a container's limit if there is one."""
    release_freed_memory(device)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(float(psutil.virtual_memory().available), _left_in_container())


def release_freed_memory(device: torch.device) -> None:
    """Return cached memory of this process to the system, so that it counts as free for all processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:  # glibc
        trim(0)


def _left_in_container(folder: Path = _CONTAINER) -> float:
    """Free bytes below the container's limit. Cached file pages count as free: the system evicts them on demand."""
    try:
        limit, used, stat = ((folder / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:  # outside containers
        return float("inf")
    if limit.strip() == "max":
        return float("inf")
    counts = dict(line.split() for line in stat.splitlines())
    return int(limit) - int(used) + int(counts["inactive_file"]) + int(counts["active_file"])
