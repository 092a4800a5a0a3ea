"""Training in this process, one cohort after another."""

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdtable import data
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.processes import train_in_workers
from kdtable.execution.devices import device_slots
from kdtable.execution.known import _known
from kdtable.execution.progress import Progress
from kdtable.execution.ranks import ProcessGroup, dismiss, gathered
from kdtable.execution.worker import train_missing
from kdtable.numerics import precision
from kdtable.numerics.layout import fix_threads
from kdtable.planning.cohorts import PlannedRun, cohorts, missing
from kdtable.planning.teachers import taught_by_others
from kdtable.store import Store
from kdtable.store.files import clear, run_folder


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended: numbers of distinct runs.

    ``unfinished`` are those that are left when every worker process was killed.
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
) -> Outcome:
    """Train what the store lacks of ``cells``; returns when every run is done or has failed, or no worker is left.

    What other processes train of it at the same time is waited for. On an interruption the runs in training are
    released, to be continued by the next call. Nothing is written before the request is known to be good.

    Args:
        cells: the request.
        results: folder of the store.
        device: where networks are computed.
        data_root: where data sets are, or are downloaded to.
        progress: is told what happens.
        url: of the store's database, if that is not in the folder.
        keep: "last", "all" or "none": which weights of a done run stay on disk.
        jobs: number of worker processes, or "auto".
        team: processes that train every run together.

    Raises:
        BadRequest: the data cannot be had, a precision does not fit the device, or the store cannot be used.
    """
    chosen = precision.choose(planned_runs[0].run.precision, device)
    ids = {planned.run.id for planned in planned_runs}
    runnable = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
    stored = _known(results, ids, url)
    known = dict.fromkeys(ids, "missing") | {run_id: row["status"] for run_id, row in stored.items()}
    at = device_slots(jobs, device, len(cohorts(missing(planned_runs, known))))
    unfinished = any(known[run_id] != "done" for run_id in runnable)
    if unfinished:
        specs = {run.data.key: run.data for run in runnable.values()}
        sets = {key: data.load(spec, data_root) for key, spec in specs.items()}
    for note in taught_by_others(runnable.values(), stored.values()):
        progress.note(note)
    _clear_done(results, [run_id for run_id in runnable if known[run_id] == "done"], progress)
    assignment = Assignment(tuple(planned_runs), results, data_root, url, keep)
    if not unfinished:
        dismiss(process_group, assignment)
    if not unfinished and "missing" not in known.values():
        return Outcome(len(runnable), 0, 0)
    fix_threads()
    with closing(Store(results, url)) as store:
        store.plan([store_row(planned) for planned in planned_runs])
        if unfinished:
            store.reopen(runnable)
            store.train_again({need for run in runnable.values() if known[run.id] != "done" for need in run.needs})
            if len(at) > 1:
                train_in_workers(at, assignment, progress)
            else:
                with gathered(process_group, assignment) as ranks:
                    train_missing(planned_runs, store, sets, chosen, progress, keep, ranks=ranks)
        ended = list(store.statuses(runnable).values())
    done, failed = ended.count("done"), ended.count("failed")
    return Outcome(done, failed, len(runnable) - done - failed)


def _clear_done(results: Path, done: Iterable[str], progress: Progress) -> None:
    """Remove what a process that was killed while it finished a run had no time to remove."""
    for run_id in done:
        try:
            clear(run_folder(results, run_id), done=True)
        except OSError as error:
            progress.note(f"what is left over of run {run_id} cannot be removed: {error}")


def store_row(planned: PlannedRun) -> dict[str, Any]:
    """The columns of a run that are known before it is trained."""
    run = planned.run
    return {
        "id": run.id,
        "protocol_id": run.protocol_id,
        "paper": planned.paper,
        "row": run.row,
        "student": run.student,
        # What a run made of the pair's teacher stands in tables under that teacher.
        "teacher": planned.pair.teacher if run.teacher else None,
        "teacher_sha256": run.teacher.sha256 if run.teacher else None,
        "data": run.data.key,
        "test_images": run.data.test_count,
        "seed": run.seed,
        "precision": run.precision,
        "meaning": json.dumps(run.protocol(), sort_keys=True),
        "epochs": run.recipe.epochs,
        "status": "n/a" if planned.not_applicable else "planned",
        "reason": planned.not_applicable,
    }
