"""How many runs fit into a device's memory side by side, by an estimate on the safe side."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from dataclasses import replace
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

#: Of what is free, leaving room for what the estimate does not see: adaptors, losses, the data set, fragments.
SHARE: Final = 0.6
#: Float32 copies of a student: weights, gradients, momentum, and the copy that a checkpoint is written from.
COPIES: Final = 4
#: A backward pass holds gradients of the feature maps that it goes through beside the maps themselves.
BACKWARD: Final = 1.5
#: Where Linux tells a container's limit and what it uses of it (cgroups, version 2).
_CONTAINER: Final = Path("/sys/fs/cgroup")


def fitting(cohort: CohortPlan, device: torch.device, sharers: int = 1) -> Iterator[CohortPlan]:
    """The cohort in as few parts as fit into free memory; a run that does not fit alone is tried alone.

    Args:
        cohort: in whose order runs are taken.
        device: whose free memory counts.
        sharers: processes that are to find room on it, this one included.
    """
    room = SHARE * free_memory(device) / sharers
    part: list[Run] = []
    for run in cohort.runs:
        if part and needed([*part, run], device) > room:
            yield _only(cohort, part)
            part = []
        part.append(run)
    yield _only(cohort, part)


def halves(cohort: CohortPlan) -> tuple[CohortPlan, CohortPlan]:
    """Two cohorts of a cohort of at least two runs."""
    middle = len(cohort.runs) // 2
    return _only(cohort, cohort.runs[:middle]), _only(cohort, cohort.runs[middle:])


def _only(cohort: CohortPlan, runs: list[Run] | tuple[Run, ...]) -> CohortPlan:
    return replace(cohort, runs=tuple(runs), teacher=cohort.teacher if any(run.teacher for run in runs) else None)


def needed(runs: list[Run], device: torch.device) -> float:
    """Bytes that training these runs together holds at its peak.

    On a CPU only as many students as there are threads compute at once; recorded steps each keep their own memory.
    """
    own = [_student(run) for run in runs]
    maps = sorted((maps for _, maps in own), reverse=True)
    at_once = available_cores() if device.type == "cpu" else len(maps)
    return COPIES * sum(weights for weights, _ in own) + BACKWARD * sum(maps[:at_once])


def _student(run: Run) -> tuple[int, int]:
    part = -(-run.recipe.batch_size // run.sharding.parts)  # images whose backward pass is made at once
    return footprint(run.student, run.data.num_classes, run.data.image_size, part, run.task)


@lru_cache(maxsize=256)
def footprint(
    name: str, num_classes: int, image_size: int, batch_size: int, task: str = "classification"
) -> tuple[int, int]:
    """Bytes of a network's weights, and of what a training pass keeps for its backward pass, in float32.

    Counted on torch's meta device: nothing is computed.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    shown = tasks.get(task)
    with torch.device("meta"):
        network = models.build(name, num_classes, image_size=image_size)
        weights = sum(p.untyped_storage().nbytes() for p in network.parameters())
        own = {p.untyped_storage()._cdata for p in network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = shown.apply(network, shown.probe(image_size, batch_size), EVERYTHING)
    maps = sum(size for key, size in kept.items() if key not in own)
    del outputs  # kept what was counted alive, so that no storage was counted under another's address
    return weights, maps


def free_memory(device: torch.device) -> float:
    """Bytes that can be had on a device: of a container's limit, if there is one."""
    release_freed_memory(device)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(float(psutil.virtual_memory().available), _left_in_container())


def release_freed_memory(device: torch.device) -> None:
    """Give back what this process freed and keeps to use again, so that it counts as free, here and elsewhere."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:  # glibc
        trim(0)


def _left_in_container(folder: Path = _CONTAINER) -> float:
    """Bytes below the container's limit. Pages of files do not count: they make room when it is needed."""
    try:
        limit, used, stat = ((folder / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:  # outside containers
        return float("inf")
    if limit.strip() == "max":
        return float("inf")
    counts = dict(line.split() for line in stat.splitlines())
    return int(limit) - int(used) + int(counts["inactive_file"]) + int(counts["active_file"])
