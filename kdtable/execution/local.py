"""Training in this process, one cohort after another."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdtable import data
from kdtable.data.sets import Images
from kdtable.execution.cohorts import Keeper, train_in_parts
from kdtable.execution.jobs import Assignment, Place, places, train_in_workers
from kdtable.execution.memory import fitting
from kdtable.execution.recorder import Progress, Recorder, Unreachable
from kdtable.execution.share import Share
from kdtable.execution.together import Team, dismiss, gathered
from kdtable.plan import Cell, make
from kdtable.provenance import provenance
from kdtable.store import NoStore, Store, Worker
from kdtable.store.files import clear, run_folder
from kdtable.teachers.find import taught_by_others
from kdtable.training import precision
from kdtable.training.numerics import fingerprint, fix_threads
from kdtable.training.precision import Precision
from kdtable.world import ALONE, World


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution ended: numbers of distinct runs.

    ``unfinished`` are those that are left when every worker process was killed.
    """

    done: int
    failed: int
    unfinished: int


def execute(
    cells: Sequence[Cell],
    results: Path,
    *,
    device: torch.device,
    data_root: Path,
    progress: Progress,
    url: str | None = None,
    keep: str = "last",
    jobs: str = "1",
    team: Team | None = None,
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
    chosen = precision.choose(cells[0].run.precision, device)
    ids = {cell.run.id for cell in cells}
    runnable = {cell.run.id: cell.run for cell in cells if cell.not_applicable is None}
    stored = _known(results, ids, url)
    known = dict.fromkeys(ids, "missing") | {run_id: row["status"] for run_id, row in stored.items()}
    at = places(jobs, device, len(make(cells, known).cohorts))
    unfinished = any(known[run_id] != "done" for run_id in runnable)
    if unfinished:
        specs = {run.data.key: run.data for run in runnable.values()}
        sets = {key: data.load(spec, data_root) for key, spec in specs.items()}
    for note in taught_by_others(runnable.values(), stored.values()):
        progress.note(note)
    _clear_done(results, [run_id for run_id in runnable if known[run_id] == "done"], progress)
    assignment = Assignment(tuple(cells), results, data_root, url, keep)
    if not unfinished:
        dismiss(team, assignment)
    if not unfinished and "missing" not in known.values():
        return Outcome(len(runnable), 0, 0)
    fix_threads()
    with closing(Store(results, url)) as store:
        store.plan([store_row(cell) for cell in cells])
        if unfinished:
            store.reopen(runnable)
            store.train_again({need for run in runnable.values() if known[run.id] != "done" for need in run.needs})
            if len(at) > 1:
                train_in_workers(at, assignment, progress)
            else:
                with gathered(team, assignment) as world:
                    train_missing(cells, store, sets, chosen, progress, keep, world=world)
        ended = list(store.statuses(runnable).values())
    done, failed = ended.count("done"), ended.count("failed")
    return Outcome(done, failed, len(runnable) - done - failed)


def train_planned(place: Place, assignment: Assignment, progress: Progress) -> None:
    """The part of one of several processes in :func:`execute`: train what is planned, with a store of its own.

    Raises:
        BadRequest: as in :func:`execute`.
    """
    fix_threads()
    cells = assignment.cells
    chosen = precision.choose(cells[0].run.precision, torch.device(place.device))
    specs = {cell.run.data.key: cell.run.data for cell in cells if cell.not_applicable is None}
    sets = {key: data.load(spec, assignment.data_root) for key, spec in specs.items()}
    with closing(Store(assignment.results, assignment.url)) as store:
        train_missing(cells, store, sets, chosen, progress, assignment.keep, place.sharers)


def known_statuses(results: Path, ids: Iterable[str], url: str | None = None) -> dict[str, str]:
    """Status of each run in a store that may not exist yet: "missing" where it is not known."""
    wanted = dict.fromkeys(ids, "missing")
    return wanted | {run_id: row["status"] for run_id, row in _known(results, wanted, url).items()}


def _known(results: Path, ids: Iterable[str], url: str | None) -> dict[str, Mapping[str, Any]]:
    """The columns of each run that a store, which may not exist yet, knows."""
    try:
        store = Store(results, url, create=False)
    except NoStore:
        return {}
    with closing(store):
        return store.known(ids)


def _clear_done(results: Path, done: Iterable[str], progress: Progress) -> None:
    """Remove what a process that was killed while it finished a run had no time to remove."""
    for run_id in done:
        try:
            clear(run_folder(results, run_id), done=True)
        except OSError as error:
            progress.note(f"what is left over of run {run_id} cannot be removed: {error}")


def train_missing(
    cells: Sequence[Cell],
    store: Store,
    sets: Mapping[str, Images],
    chosen: Precision,
    progress: Progress,
    keep: str = "last",
    sharers: int = 1,
    world: World = ALONE,
) -> None:
    """Train planned runs of ``cells`` until each of them is done or has failed, here or elsewhere.

    Several processes may do so on one store. Each claims a cohort when it begins to train it, so that the others
    can take the next ones, and at the end waits for what they still train: if one of them dies, its runs are
    continued here. What failed is not tried again.
    """
    origin = provenance(fingerprint(chosen.device))
    needed = {need for cell in cells for need in cell.run.needs}
    with Worker(store) as worker:
        share = Share(cells, store, worker, progress)
        while share.unfinished():
            _fail_unreachable(share, store, worker, progress, origin, keep)
            free = share.cohorts()
            if not free:
                share.wait()
                continue
            first, *parts = fitting(free[0], chosen.device, max(sharers, world.size))
            if cohort := share.claim(first, origin):
                teacher = cohort.teacher.network if cohort.teacher else None
                progress.cohort(len(parts) + len(free) - 1, list(cohort.runs), teacher)
                world.first(cohort)
                keeper = Keeper(store, worker, {run.id: run for run in cohort.runs}, progress, keep, needed)
                try:
                    train_in_parts(cohort, keeper, store.folder, sets[cohort.runs[0].data.key], chosen, world)
                finally:
                    worker.release(run.id for run in cohort.runs)


def _fail_unreachable(
    share: Share, store: Store, worker: Worker, progress: Progress, origin: Mapping[str, Any], keep: str
) -> None:
    """Mark as failed what cannot begin any more, with the reason of the run that it needs."""
    for run, need in share.unreachable():
        if worker.claim([run.id], origin):
            (first,) = store.all_runs([need])
            what = f"{first['row']} of {first['student']}, seed {first['seed']}"
            Recorder(store, worker, {run.id: run}, progress, keep).fail(run.id, Unreachable(what, str(first["reason"])))


def store_row(cell: Cell) -> dict[str, Any]:
    """The columns of a run that are known before it is trained."""
    run = cell.run
    return {
        "id": run.id,
        "protocol_id": run.protocol_id,
        "paper": cell.paper,
        "row": run.row,
        "student": run.student,
        # What a run made of the pair's teacher stands in tables under that teacher.
        "teacher": cell.pair.teacher if run.teacher else None,
        "teacher_sha256": run.teacher.sha256 if run.teacher else None,
        "data": run.data.key,
        "test_images": run.data.test_count,
        "seed": run.seed,
        "precision": run.precision,
        "meaning": json.dumps(run.protocol(), sort_keys=True),
        "epochs": run.recipe.epochs,
        "status": "n/a" if cell.not_applicable else "planned",
        "reason": cell.not_applicable,
    }
