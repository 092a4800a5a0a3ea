"""Train the missing runs of a request: choose a backend, submit workers, wait for them."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdtable import tasks
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends import BACKENDS
from kdtable.execution.backends.base import Backend, Engine
from kdtable.execution.devices import device_slots, records_steps
from kdtable.execution.dispatch import dispatch
from kdtable.execution.known import known_runs
from kdtable.execution.part import FOLDER
from kdtable.execution.progress import Progress
from kdtable.execution.ranks import ProcessGroup, dismiss
from kdtable.execution.shared_recorder import check_place, sweep_left
from kdtable.execution.stale import plan_renewals
from kdtable.execution.store_progress import StoreProgress, report_reached
from kdtable.execution.work_queue import PAUSE
from kdtable.execution.worker import load_all
from kdtable.numerics import precision
from kdtable.planning.cohorts import PlannedRun, cohorts, missing
from kdtable.planning.run import Run
from kdtable.planning.teachers import changed_teachers, trained_elsewhere
from kdtable.plugins import loaded
from kdtable.provenance import source_hash
from kdtable.recipes.metrics import Metric
from kdtable.store import RunRecord, Store
from kdtable.store.files import bring_back, clear, run_folder
from kdtable.store.patience import WAIT, Patience
from kdtable.store.records import Protocol
from kdtable.store.retraining import renew
from kdtable.store.shared import prepare


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended, in numbers of distinct runs.

    ``unfinished`` runs remain when every worker process was killed.
    """

    done: int
    failed: int
    unfinished: int


def execute(
    planned_runs: Sequence[PlannedRun],
    results: Path,
    *,
    device: torch.device,
    data_root: Path,
    progress: Progress,
    url: str | None = None,
    keep: str = "last",
    jobs: str = "1",
    process_group: ProcessGroup | None = None,
    cuda_graphs: str = "auto",
    retrain: bool = False,
    backend: Backend | None = None,
    engine: Engine | None = None,
    detach: bool = False,
    checkpoints: str | None = None,
) -> Outcome:
    """Train the missing runs of ``planned_runs``; return when each is done or failed, or when no worker is left.

    Runs that other processes are training are waited for. An interruption releases the runs in training; the next call
    resumes them. Nothing is written before the request is checked.

    Args:
        planned_runs: the resolved request.
        results: folder of the store.
        device: the device to train on.
        data_root: folder of data sets.
        progress: receives events.
        url: URL of the store's database, if it is not in the folder.
        keep: "last", "all" or "none": which weights of a done run stay on disk.
        jobs: number of worker processes, or "auto".
        process_group: ranks that train every run together.
        cuda_graphs: "on", "off" or "auto": whether steps are recorded as CUDA graphs.
        retrain: whether to train again the runs that were made by other code or another teacher's file.
        backend: runs the workers; by default on this machine, by ``device``, ``jobs`` and ``process_group``.
        engine: schedules the parts of the request on a cluster, in place of a backend.
        detach: leave the request to the engine, and return at once.
        checkpoints: URL of the folder of checkpoints and students; by default they are in ``results``.

    Raises:
        BadRequest: the data cannot be had, a precision does not fit the device, or the store cannot be used.
    """
    runs = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
    ids = {planned.run.id for planned in planned_runs}
    stored = known_runs(results, ids, url)
    statuses = dict.fromkeys(ids, "missing") | {run.id: run.status for run in stored}
    renewals = plan_renewals(runs, stored, results, url, progress.note, retrain=retrain)
    left = missing(planned_runs, statuses | {run: "planned" for run, one in renewals.items() if one.back is None})
    ranks = process_group.size if process_group else 1
    recorded = records_steps(cuda_graphs, planned_runs[0].run.precision, device, ranks)
    assignment = Assignment(
        tuple(planned_runs), results, data_root, url, keep, recorded, plugins=loaded(), checkpoints=checkpoints
    )
    waiting = len(cohorts(left))
    check_place(checkpoints, results, url, left)
    if engine is not None:
        assignment = replace(assignment.moved(Path.absolute), patience=0.0)
        if left:
            engine.check(assignment)
    elif backend is None:
        backend = _on_this_machine(assignment, runs.values() if left else (), waiting, device, jobs, process_group)
    elsewhere = trained_elsewhere((run.teacher, run.data) for run in runs.values())
    used = {run.id: run.teacher_sha256 for run in stored if run.last_epoch}
    for note in [*elsewhere, *(() if retrain else changed_teachers(runs.values(), used))]:
        progress.note(note)
    _clear_done(results, [run for run in stored if run.done and run.id in runs], progress)
    if not left:
        dismiss(process_group, assignment)
        if "missing" not in statuses.values() and not renewals:
            return Outcome(len(runs), 0, 0)
    with closing(Store(results, url, patience=Patience(WAIT, progress.note))) as store:
        store.plan([store_row(planned) for planned in planned_runs])
        if checkpoints:
            prepare(store)
        if renewals:
            renew(store, renewals, source_hash())
        if left:
            sweep_left(store, runs, progress)
            store.reopen(runs)
            store.train_again({need for run in left for need in run.needs})
            report_reached(runs, store, progress)
            if engine is not None and detach:
                jobs_left = engine.leave(assignment, left)
                progress.note(f"left to jobs {', '.join(jobs_left)}; logs are in {results / FOLDER}")
            elif engine is not None:
                dispatch(engine, assignment, progress, store)
            elif backend is not None:
                _train(backend, waiting, assignment, progress, store)
        ended = list(store.statuses(runs).values())
    done, failed = ended.count("done"), ended.count("failed")
    return Outcome(done, failed, len(runs) - done - failed)


def _on_this_machine(
    assignment: Assignment,
    runs: Iterable[Run],
    waiting: int,
    device: torch.device,
    jobs: str,
    process_group: ProcessGroup | None,
) -> Backend:
    """The backend that the options select; raises `BadRequest` for unusable options or data."""
    slots = device_slots(jobs, device, waiting)
    precision.choose(assignment.planned_runs[0].run.precision, device)
    sets = load_all(runs, assignment.data_root)
    backend: Backend
    if process_group is not None and process_group.size > 1 and not process_group.started:
        backend = BACKENDS["ranks"](process_group.devices)
    elif len(slots) > 1:
        backend = BACKENDS["processes"](slots)
    else:
        started = process_group if process_group is not None and process_group.started else None
        backend = BACKENDS["local"](slots[0], sets, started)
    return backend


def _train(backend: Backend, waiting: int, assignment: Assignment, progress: Progress, store: Store) -> None:
    """Have workers train an assignment; return when all of them have ended."""
    worker_progress = progress if backend.tells_progress else Progress()
    store_progress = None if backend.tells_progress else StoreProgress(assignment.planned_runs, store, progress)
    workers = min(backend.workers, waiting)
    try:
        for _ in range(workers):
            backend.submit(assignment, worker_progress)
        while workers:
            ended = backend.wait(PAUSE)
            if store_progress is not None:
                store_progress.look()
            if ended is None:
                continue
            workers -= 1
            if ended.reason is not None:
                progress.note(f"worker {ended.reason}{': the others take over its runs' if workers else ''}")
    except BaseException:
        backend.cancel()
        raise


def _clear_done(results: Path, done: Iterable[RunRecord], progress: Progress) -> None:
    """Remove leftover files of done runs, whose process was killed while it finished them or put them aside."""
    for run in done:
        folder = run_folder(results, run.id)
        try:
            clear(folder, done=True)
            if run.result is not None:
                bring_back(folder, run.result.code)
        except OSError as error:
            progress.note(f"what is left over of run {run.id} cannot be removed: {error}")


def _metrics(run: Run) -> tuple[Metric, ...]:
    """The metrics that tables can show of a run, with the main one on held-out images where there are any."""
    found = tasks.get(run.task).metrics
    return (*found, found[0].on_validation()) if run.data.validation else found


def store_row(planned: PlannedRun) -> RunRecord:
    """The store's record of a run before training."""
    run = planned.run
    return RunRecord(
        id=run.id,
        protocol=Protocol(run.protocol_id, run.protocol_text, run.task, _metrics(run)),
        paper=planned.paper,
        row=run.row,
        student=run.student,
        # A teacher that a run derives from the pair's is shown in tables as the pair's.
        teacher=planned.pair.teacher if run.teacher else None,
        teacher_sha256=run.teacher.sha256 if run.teacher else None,
        data=run.data.key,
        test_images=run.data.test_count,
        seed=run.seed,
        precision=run.precision,
        epochs=run.stage_epochs["main"],
        status="n/a" if planned.not_applicable else "planned",
        reason=planned.not_applicable,
    )
