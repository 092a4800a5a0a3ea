"""Training a cohort: its teacher, its members where their checkpoints left them, its halves if memory runs out."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from kdtable.data.protocols import Images
from kdtable.distributed import (
    NO_MEMORY,
    SINGLE_PROCESS,
    Ranks,
    failure,
)
from kdtable.errors import BadRequest
from kdtable.execution.load_teacher import load_teacher
from kdtable.execution.memory import halves, release_freed_memory
from kdtable.execution.recorder import Recorder
from kdtable.execution.teacher_caches import cache_of
from kdtable.models.branched import Branched
from kdtable.models.network import Network
from kdtable.numerics.layout import to_device
from kdtable.numerics.precision import Precision
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher, RunTeacher, TeacherRef
from kdtable.store import Store
from kdtable.tasks.classification import Classification
from kdtable.teachers.claimed import shortfall
from kdtable.training.build import build_method, build_student
from kdtable.training.cohort import Cohort, OutOfMemory, Sink
from kdtable.training.member import Member
from kdtable.training.teacher import FrozenTeacher, Teacher


class Keeper(Sink, Protocol):
    """The sink of a cohort that also knows what of it is still ours."""

    def left(self, cohort: CohortPlan) -> tuple[Run, ...]:
        """What is neither done nor failed, and not taken over."""

    def measure(self, cohort: CohortPlan, network: Network, task: Classification) -> None:
        """Keep the teacher's accuracy; the user is told of a teacher that is too weak."""

    def resume(self, member: Member) -> None:
        """Bring a fresh member to where its checkpoint was written."""

    def fail(self, run_id: str, error: BaseException) -> None:
        """Mark a run as failed."""

    def note(self, text: str) -> None:
        """Tell the user something."""


class RecordingKeeper(Recorder):
    """A recorder that also knows what of its cohort is still ours, and keeps what its teacher reached."""

    def left(self, cohort: CohortPlan) -> tuple[Run, ...]:
        """What is neither done nor failed, and not taken over."""
        held = set(self._worker.claims())
        return tuple(run for run in cohort.runs if run.id in held)

    def measure(self, cohort: CohortPlan, network: Network, task: Classification) -> None:
        """See :func:`measure_teacher`; the user is told of a teacher that is too weak."""
        if cohort.teacher is not None and (warning := measure_teacher(self._store, cohort.teacher, network, task)):
            self.note(warning)


def train_in_parts(
    cohort: CohortPlan,
    keeper: Keeper,
    results: Path,
    images: Images,
    chosen: Precision,
    ranks: Ranks = SINGLE_PROCESS,
) -> None:
    """Train a cohort; if memory runs out, its halves one after the other, each from its last checkpoints.

    Of several ranks, one that fails raises, whatever it is.
    """
    if ranks.size > 1:
        _train_cohort(cohort, keeper, results, images, chosen, ranks)
        return
    try:
        _train_cohort(cohort, keeper, results, images, chosen, ranks)
        return
    except BadRequest:
        raise
    except OutOfMemory as error:
        reason = str(error).partition("\n")[0]
    except Exception as error:
        # What is not one member's own (the teacher's pass, the batches) ends the cohort, not the grid.
        for run in keeper.left(cohort):
            keeper.fail(run.id, error)
        return
    # Not in the handler, where the traceback would keep the members and their memory.
    release_freed_memory(chosen.device)
    left = replace(cohort, runs=keeper.left(cohort))
    parts = halves(left) if len(left.runs) > 1 else (left,)
    how = "in two parts" if len(parts) > 1 else "alone"
    keeper.note(f"memory ran out with {len(cohort.runs)} runs together, so what is left goes on {how} ({reason})")
    for part in parts:
        if part.runs:
            train_in_parts(part, keeper, results, images, chosen, ranks)


def _train_cohort(
    cohort: CohortPlan,
    keeper: Keeper,
    results: Path,
    images: Images,
    chosen: Precision,
    ranks: Ranks,
) -> None:
    first = cohort.runs[0]
    task = Classification(images, first.recipe, first.seed, chosen, replace(ranks, accumulate=first.accumulate))
    network: Network | None = None
    teacher: Teacher | None = None
    if cohort.teacher is not None:
        network = ranks.agreed(partial(load_teacher, cohort.teacher, images.spec, chosen.device, results))
        ranks.agreed(partial(keeper.measure, cohort, network, task))
        teacher = ranks.agreed(partial(FrozenTeacher, network, task))
        if cache := cache_of(cohort, chosen.device):
            teacher = cache.before(teacher, keeper.note)
    Cohort(task, teacher, _members(cohort, keeper, task, network, results), keeper).train()


def _members(
    cohort: CohortPlan, keeper: Keeper, task: Classification, teacher: nn.Module | None, results: Path
) -> Iterator[Member]:
    """The cohort's members where their checkpoints left them; one that cannot be built fails alone.

    Raises:
        OutOfMemory: there is not enough of it for all of them.
    """
    ranks = task.ranks
    for run in cohort.runs:
        error: Exception | None = None
        try:
            member = build_member(run, task, teacher, results)
            keeper.resume(member)
        except Exception as raised:
            error = raised
        (code,) = ranks.worst([failure(error)])
        if code == 0:
            _start_alike(member, ranks)
            yield member
            continue
        reason = ranks.first_text("" if error is None else str(error) or type(error).__name__)
        if code == NO_MEMORY and len(cohort.runs) > 1:
            raise OutOfMemory(reason) from error
        keeper.fail(run.id, error or RuntimeError(reason))


def _start_alike(member: Member, ranks: Ranks) -> None:
    """Bring a member to where rank 0's is."""
    if ranks.size > 1:
        state = ranks.broadcast(member.state() if ranks.rank == 0 else None)
        if ranks.rank:
            member.load_state(state)


def build_member(run: Run, task: Classification, teacher: nn.Module | None, results: Path) -> Member:
    """The student and the method of a run at their start.

    Raises:
        ValueError: the method cannot be built for these networks or this data set.
        BadRequest: the weights that it starts from cannot be had.
    """
    device = task.device
    student = to_device(started_student(run, results), device)
    method = build_method(
        run.row,
        recipe=run.recipe,
        terms=run.terms,
        params=run.params,
        labels=task.images.train_labels,
        student=student,
        teacher=teacher if run.teacher else None,
        data=run.data,
        seed=run.seed,
        device=device,
        stage_epochs=run.stage_epochs,
        schedules=run.schedules,
        ranks=task.ranks,
    )
    if run.sync_batch_norm:
        student, method = (_in_step(module) for module in (student, method))
    return Member(run.id, student, method, task)


def _in_step(module: Any) -> Any:
    """A module whose batch norms take the statistics of all processes' images."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]


def started_student(run: Run, results: Path) -> Network:
    """A run's student, whose backbone has the weights that it starts from, and their input normalisation.

    Raises:
        BadRequest: these cannot be had.
    """
    student = build_student(run.student, run.data, run.seed)
    if run.start is not None:
        student.normalise_inputs(run.start.mean, run.start.std)
        backbone = student.backbone if isinstance(student, Branched) else student
        of = run.data if run.start.classes is None else replace(run.data, num_classes=run.start.classes)
        weights, own = load_teacher(run.start, of, torch.device("cpu"), results).state_dict(), backbone.state_dict()
        # The classifier of another number of classes stays as it was drawn.
        backbone.load_state_dict(
            {key: weights[key] if weights[key].shape == own[key].shape else own[key] for key in own}
        )
    return student


def measure_teacher(store: Store, teacher: TeacherRef, network: nn.Module, task: Classification) -> str | None:
    """Keep the teacher's accuracy on the task's test set, unless it is known already.

    Returns:
        A sentence, when it is too far below the published accuracy: then the file, its input normalisation or the
        data is not what it seems.
    """
    spec = task.images.spec
    key = teacher.run if isinstance(teacher, RunTeacher) else teacher.sha256
    if (key, spec.key) in {(row["sha256"], row["data"]) for row in store.teacher_accuracies()}:
        return None
    accuracy = task.evaluate(network)
    measured = {
        "sha256": key,
        "data": spec.key,
        "network": teacher.network,
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "images": spec.test_count,
        "claimed_top1": teacher.claimed_top1 if isinstance(teacher, FileTeacher) else None,
    }
    store.record_teacher(measured)
    return shortfall(measured)
