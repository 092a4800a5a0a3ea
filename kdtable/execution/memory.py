"""Estimate, on the safe side, how many runs fit into a device's memory at once."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import torch

from kdtable import methods, models, tasks
from kdtable.hardware import available_cores
from kdtable.models.foreign import is_foreign
from kdtable.models.outputs import EVERYTHING
from kdtable.models.uninitialised import uninitialised
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import single_refs
from kdtable.recipes.recipe import WEAK_STRONG, Recipe
from kdtable.tasks.base import tensors_of

#: Usable fraction of free memory; the rest is for what the estimate omits: adaptors, fragmentation.
SHARE: Final = 0.6
#: Float32 copies of a student: weights, gradients, momentum, and the copy that a checkpoint is written from.
COPIES: Final = 4
#: Copies of a teacher's weights: the network, and the one with folded batch norms that runs.
TEACHER_COPIES: Final = 2
#: Batches whose teacher outputs exist at once: the students' and the next one.
AHEAD: Final = 2
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
    """Peak bytes of training these runs in one cohort: students, methods' buffers, losses, teacher, padded images.

    On a CPU only as many students as threads compute at once. On a GPU all count, since the memory that one student
    leaves free may not fit the next.
    """
    own = [_sizes(run.student, run) for run in runs]
    maps = sorted((BACKWARD * one.maps + one.outputs for one in own), reverse=True)
    at_once = available_cores() if device.type == "cpu" else len(maps)
    students = sum(_copies(run.recipe) * one.weights for run, one in zip(runs, own, strict=True)) + sum(maps[:at_once])
    students += sum(_buffers(run, one.weights) for run, one in zip(runs, own, strict=True))
    return students + max((_teacher(run) for run in runs if run.teacher), default=0) + _padded_images(runs[0])


def _buffers(run: Run, weights: int) -> int:
    """Bytes of what the run's method keeps: key encoders, queues."""
    widths = [_sizes(ref.network, run).width for ref in single_refs(run.teacher)]
    return methods.get(run.row, run.task).buffer_bytes(run.objective, weights, max(widths, default=0))


def _copies(recipe: Recipe) -> int:
    """How many copies of a student's weights its training holds: AdamW has a second moment, an average is one more."""
    return COPIES + (recipe.optimizer == "adamw") + 2 * (recipe.ema > 0)  # the average, and the checkpoint's copy of it


def _teacher(run: Run) -> float:
    """Bytes of the teachers and of their outputs for a run; a loss saves about as much of them as it reads."""
    sizes = [_sizes(ref.network, run) for ref in single_refs(run.teacher)]
    return sum(TEACHER_COPIES * one.weights + AHEAD * one.outputs for one in sizes)


def _padded_images(run: Run) -> int:
    """Bytes of the training images that the batch stream keeps on the device."""
    side = run.data.image_size + 2 * run.recipe.crop_padding
    return 0 if run.data.uncropped else 3 * run.data.train_count * side**2


def _sizes(network: str, run: Run) -> "Footprint":
    views = 2 if run.recipe.views == WEAK_STRONG else 1  # both views' maps wait for the backward pass
    micro_batch = -(-views * run.recipe.batch_size // run.sharding.parts)
    return footprint(network, run.data.num_classes, run.data.image_size, micro_batch, run.task)


class Footprint(NamedTuple):
    """Bytes of a network's weights, of what a forward pass saves for the backward pass, and of all its outputs.

    ``width`` is that of its embedding; 0 if it has none.
    """

    weights: int
    maps: int
    outputs: int
    width: int = 0


@lru_cache(maxsize=256)
def footprint(name: str, num_classes: int, image_size: int, batch_size: int, task: str = tasks.DEFAULT) -> Footprint:
    """What a network takes in float32.

    Counted on torch's meta device, so nothing is computed.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    kind = tasks.get(task)
    # Some networks of other libraries cannot be built on the meta device.
    network = uninitialised(name, num_classes, image_size).to("meta") if is_foreign(name) else None
    with torch.device("meta"):
        network = network or models.build(name, num_classes, image_size=image_size)
        weights = sum(p.untyped_storage().nbytes() for p in network.parameters())
        own = {p.untyped_storage()._cdata for p in network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = kind.apply(network, kind.probe(image_size, batch_size), EVERYTHING)
    maps = sum(size for key, size in kept.items() if key not in own)
    # The outputs are held until here, so that no counted storage was freed and its address reused.
    embedding = getattr(outputs, "embedding", None)
    width = 0 if embedding is None else embedding.shape[1]
    return Footprint(weights, maps, sum(tensor.nbytes for tensor in tensors_of(outputs)), width)


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
