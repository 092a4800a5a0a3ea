"""Train a cohort: load its teacher, resume its members, and halve it if memory runs out."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from kdtable import tasks
from kdtable.data.sets import Images
from kdtable.distributed import SINGLE_PROCESS, Ranks, ran_out_of_memory
from kdtable.errors import BadRequest
from kdtable.execution.keeper import Keeper
from kdtable.execution.load_teacher import load_teacher
from kdtable.execution.memory import halves, release_freed_memory
from kdtable.execution.teacher_caches import cache_of
from kdtable.models.branched import Branched
from kdtable.models.ensemble import Ensemble
from kdtable.models.network import Network
from kdtable.numerics.precision import Precision
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.store.database import Lost
from kdtable.tasks.base import Task
from kdtable.training.build import build_member, build_student
from kdtable.training.cohort import Cohort, OutOfMemory
from kdtable.training.cuda_graphs import CudaGraphs
from kdtable.training.member import Member
from kdtable.training.recording import Recordings
from kdtable.training.teacher import FrozenTeacher, Teacher


def train_in_parts(
    cohort: CohortPlan,
    keeper: Keeper,
    results: Path,
    images: Images,
    chosen: Precision,
    ranks: Ranks = SINGLE_PROCESS,
    *,
    cuda_graphs: bool = False,
) -> None:
    """Train a cohort; if memory runs out, train its halves one after the other from their last checkpoints.

    Raises:
        BadRequest: the database or the teacher cannot be used.
        Exception: with several ranks, any error (`OutOfMemory` included): this process must end, and the process that
            started the ranks decides what to do.
    """
    if ranks.size > 1:
        _train_cohort(cohort, keeper, results, images, chosen, ranks, None)
        return
    recordings = Recordings(partial(CudaGraphs, chosen.device), keeper.note) if cuda_graphs else None
    try:
        _train_cohort(cohort, keeper, results, images, chosen, ranks, recordings)
        return
    except BadRequest:
        raise
    except OutOfMemory as error:
        reason = str(error).partition("\n")[0]
    except Exception as error:
        # An error outside a member (teacher pass, batches) ends the cohort, not the grid.
        for run in keeper.left(cohort):
            keeper.failed(run.id, error)
        return
    # Outside the handler, where the traceback would keep the members' memory alive.
    release_freed_memory(chosen.device)
    left = replace(cohort, runs=keeper.left(cohort))
    parts = halves(left) if len(left.runs) > 1 else (left,)
    how = "in two parts" if len(parts) > 1 else "alone"
    keeper.note(f"memory ran out with {len(cohort.runs)} runs together, so what is left goes on {how} ({reason})")
    for part in parts:
        if part.runs:
            train_in_parts(part, keeper, results, images, chosen, cuda_graphs=cuda_graphs)


def _train_cohort(
    cohort: CohortPlan,
    keeper: Keeper,
    results: Path,
    images: Images,
    chosen: Precision,
    ranks: Ranks,
    recordings: Recordings | None,
) -> None:
    first = cohort.runs[0]

    @cache  # members share batches if their task is the same object
    def task_of(name: str) -> Task:
        shared = replace(ranks, accumulate=first.sharding.accumulate)
        return tasks.get(name)(images, first.recipe, first.seed, chosen, shared)

    task = task_of(first.task)
    network: Network | Ensemble | None = None
    teacher: Teacher | None = None
    if cohort.teacher is not None:
        network = load_teacher(cohort.teacher, images.spec, chosen.device, results)
        keeper.measure(cohort, network, task)
        teacher = FrozenTeacher(network, task)
        if kept := cache_of(cohort, chosen.device):
            teacher = kept.before(teacher, keeper.note)
    if recordings is not None and not task.recordable:
        keeper.note(
            f"steps of {first.task} run kernel by kernel, not as CUDA graphs: shapes change from batch to batch"
        )
        recordings = None
    members = _members(cohort, keeper, task_of, network, results)
    Cohort(task, teacher, members, keeper, recordings=recordings).train()


def _members(
    cohort: CohortPlan,
    keeper: Keeper,
    task_of: Callable[[str], Task],
    teacher: nn.Module | None,
    results: Path,
) -> Iterator[Member]:
    """Yield the cohort's members, resumed from their checkpoints; a member that cannot be built fails alone.

    Raises:
        OutOfMemory: memory ran out with more than one run: fewer may fit.
    """
    for run in cohort.runs:
        try:
            member = member_of(run, task_of, teacher, results)
        except Exception as error:
            # A method that does not fit its networks fails on all ranks alike; other errors may be this rank's alone.
            if task_of(run.task).ranks.size > 1 and not isinstance(error, ValueError):
                raise
            _fail(run, error, cohort, keeper)
        else:
            if _resumed(member, run, cohort, keeper):
                yield member


def _resumed(member: Member, run: Run, cohort: CohortPlan, keeper: Keeper) -> bool:
    """Load rank 0's checkpoint into a member on all ranks; return whether rank 0 could read it."""
    state = None
    try:
        keeper.resume(member)
        state = member.state()
    except Lost:
        raise
    except Exception as error:
        _fail(run, error, cohort, keeper)
    ranks = member.task.ranks
    state = ranks.broadcast(on_cpu(state) if ranks.size > 1 else state)
    if state is not None and ranks.rank:
        member.load_state(state)
    return state is not None


def on_cpu(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """A state with its tensors on the CPU: what is pickled on a GPU appears on that GPU in every process."""
    copied: dict[str, Any] | None = tree_map_only(torch.Tensor, torch.Tensor.cpu, state)
    return copied


def _fail(run: Run, error: Exception, cohort: CohortPlan, keeper: Keeper) -> None:
    if ran_out_of_memory(error) and len(cohort.runs) > 1:
        raise OutOfMemory(str(error)) from error
    keeper.failed(run.id, error)


def member_of(run: Run, task_of: Callable[[str], Task], teacher: nn.Module | None, results: Path) -> Member:
    """Build a run's member before its first epoch.

    Raises:
        ValueError: the method cannot be built for these networks or this data set.
        BadRequest: the weights that it starts from cannot be loaded.
    """
    return build_member(
        run.id,
        run.method,
        run.objective,
        run.recipe,
        student=started_student(run, results),
        teacher=teacher if run.teacher else None,
        task=task_of(run.task),
        task_of=task_of,
        sync_batch_norm=run.sharding.sync_batch_norm,
        test_loss=bool(run.test_loss),
    )


def started_student(run: Run, results: Path) -> Network:
    """Build a run's student; where the run names initial weights, load them with their input normalisation.

    Raises:
        BadRequest: the weights cannot be loaded.
    """
    student = build_student(run.student, run.data, run.seed)
    if run.start is not None:
        student.normalise_inputs(run.start.mean, run.start.std)
        backbone = student.backbone if isinstance(student, Branched) else student
        of = run.data if run.start.classes is None else replace(run.data, num_classes=run.start.classes)
        backbone.start_from(load_teacher(run.start, of, torch.device("cpu"), results).state_dict())
    return student
