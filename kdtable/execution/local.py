"""Training in this process, one cohort after another."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdtable import data
from kdtable.data.sets import ImageSet
from kdtable.errors import BadRequest
from kdtable.execution.recorder import Progress, Recorder
from kdtable.plan import Cell, CohortPlan, Plan, make
from kdtable.provenance import provenance
from kdtable.runs import Run, TeacherRef
from kdtable.store import FILE_NAME, Store
from kdtable.teachers.files import load_into, read_weights
from kdtable.training import precision
from kdtable.training.build import build_method, build_student, build_teacher
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member
from kdtable.training.numerics import fingerprint, fix_threads, place
from kdtable.training.precision import Precision
from kdtable.training.task import Classification


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended: numbers of distinct runs."""

    done: int
    failed: int


def execute(
    cells: Sequence[Cell], results: Path, *, device: torch.device, data_root: Path, progress: Progress
) -> Outcome:
    """Train what the store in ``results`` lacks of ``cells``; returns when every run is done or has failed.

    On an interruption the runs in training are released, to be continued by the next call. Nothing is written
    before the request is known to be good.

    Raises:
        BadRequest: the data cannot be had, a precision does not fit the device, the store cannot be used, or
            another process trains into it.
    """
    chosen = precision.choose(cells[0].run.precision, device)
    ids = {cell.run.id for cell in cells}
    runnable = {cell.run.id: cell.run for cell in cells if cell.not_applicable is None}
    known = known_statuses(results, ids)
    if any(known[run_id] != "done" for run_id in runnable):
        specs = {run.data.key: run.data for run in runnable.values()}
        sets = {key: data.load(spec, data_root) for key, spec in specs.items()}
    elif "missing" not in known.values():
        return Outcome(len(runnable), 0)
    fix_threads()
    with closing(Store(results)) as store, store.training_lock():
        store.release_abandoned()
        store.plan([store_row(cell) for cell in cells])
        plan = make(cells, store.statuses(ids))
        if plan.cohorts:
            _train_all(plan, store, sets, chosen, progress)
        statuses = [store.statuses(runnable)[run_id] for run_id in runnable]
    return Outcome(statuses.count("done"), statuses.count("failed"))


def known_statuses(results: Path, ids: Iterable[str]) -> dict[str, str]:
    """Status of each run in a store that may not exist yet: "missing" where it is not known."""
    wanted = dict.fromkeys(ids, "missing")
    if not (results / FILE_NAME).exists():
        return wanted
    with closing(Store(results, create=False)) as store:
        return wanted | store.statuses(wanted)


def _train_all(plan: Plan, store: Store, sets: dict[str, ImageSet], chosen: Precision, progress: Progress) -> None:
    waiting = [run for cohort in plan.cohorts for run in cohort.runs]
    progress.started(sum(run.total_epochs * run.data.train_count for run in waiting))
    origin = provenance(fingerprint(chosen.device))
    for number, cohort in enumerate(plan.cohorts, start=1):
        runs = {run.id: run for run in cohort.runs}
        teacher = cohort.teacher.network if cohort.teacher else None
        progress.cohort(number, len(plan.cohorts), list(cohort.runs), teacher)
        recorder = Recorder(store, runs, progress)
        store.start(runs, origin)
        try:
            _train_cohort(cohort, recorder, store, sets[cohort.runs[0].data.key], chosen)
        except BadRequest:
            raise
        except Exception as error:
            # What is not one member's own (the teacher's pass, the batches) ends the cohort, not the grid.
            for run_id, status in store.statuses(runs).items():
                if status == "running":
                    recorder.fail(run_id, error)
        finally:
            store.release(runs)


def _train_cohort(cohort: CohortPlan, recorder: Recorder, store: Store, images: ImageSet, chosen: Precision) -> None:
    first = cohort.runs[0]
    task = Classification(images, first.recipe, first.seed, chosen)
    teacher = None
    if cohort.teacher is not None:
        teacher = load_teacher(cohort.teacher, images.spec.num_classes, chosen.device)
        if warning := measure_teacher(store, cohort.teacher, teacher, task):
            recorder.note(warning)
    Cohort(task, teacher, _members(cohort, recorder, task, teacher), recorder).train()


def _members(
    cohort: CohortPlan, recorder: Recorder, task: Classification, teacher: nn.Module | None
) -> Iterator[Member]:
    """The cohort's members where their checkpoints left them; one that cannot be built fails alone."""
    for run in cohort.runs:
        try:
            member = build_member(run, task, teacher)
            recorder.resume(member)
        except Exception as error:
            recorder.fail(run.id, error)
        else:
            yield member


def build_member(run: Run, task: Classification, teacher: nn.Module | None) -> Member:
    """The student and the method of a run at their start.

    Raises:
        ValueError: the method cannot be built for these networks or this data set.
    """
    device = task.device
    student = place(build_student(run.student, run.data, run.seed), device)
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
    )
    return Member(run.id, student, method, task)


def load_teacher(teacher: TeacherRef, num_classes: int, device: torch.device) -> nn.Module:
    """The frozen teacher with its weights, on ``device``.

    Raises:
        BadRequest: the file changed since the plan was made, or does not fit.
    """
    weights = read_weights(teacher.path)
    if weights.sha256 != teacher.sha256:
        raise BadRequest(f"{teacher.path} changed while it was in use: run the command again")
    network = build_teacher(teacher.network, num_classes, teacher.mean, teacher.std)
    load_into(network, weights, name=teacher.network)
    return place(network, device)


def measure_teacher(store: Store, teacher: TeacherRef, network: nn.Module, task: Classification) -> str | None:
    """Keep the teacher's accuracy on the task's test set, unless it is known already.

    Returns:
        A sentence, when it is below the published accuracy by more than three standard errors and half a point:
        then the file, its input normalisation or the data is not what it seems.
    """
    spec = task.images.spec
    if (teacher.sha256, spec.key) in {(row["sha256"], row["data"]) for row in store.teacher_accuracies()}:
        return None
    accuracy = task.evaluate(network)
    store.record_teacher(
        {
            "sha256": teacher.sha256,
            "data": spec.key,
            "network": teacher.network,
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "images": spec.test_count,
            "claimed_top1": teacher.claimed_top1,
        }
    )
    reached, claimed = 100 * accuracy.top1, teacher.claimed_top1
    error = 100 * (accuracy.top1 * (1 - accuracy.top1) / spec.test_count) ** 0.5
    if claimed is None or reached >= claimed - max(3 * error, 0.5):
        return None
    return f"teacher {teacher.network} reaches {reached:.2f} % on {spec.name}, and its source claims {claimed:.2f} %"


def store_row(cell: Cell) -> dict[str, Any]:
    """The columns of a run that are known before it is trained."""
    run = cell.run
    return {
        "id": run.id,
        "protocol_id": run.protocol_id,
        "row": run.row,
        "student": run.student,
        "teacher": run.teacher.network if run.teacher else None,
        "teacher_sha256": run.teacher.sha256 if run.teacher else None,
        "data": run.data.key,
        "seed": run.seed,
        "precision": run.precision,
        "meaning": json.dumps(run.protocol() | {"seed": run.seed}, sort_keys=True),
        "epochs": run.recipe.epochs,
        "status": "n/a" if cell.not_applicable else "planned",
        "reason": cell.not_applicable,
    }
