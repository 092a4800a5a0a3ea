"""Whether a store is whole: its database, and the files that its rows speak of."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from torch import Tensor

from kdtable.checkpoints import checkpoint, student
from kdtable.checkpoints.checkpoint import BadCheckpoint, NoAccess
from kdtable.checkpoints.validation import (
    check_optimizer,
    check_place,
    check_scaler,
    place_after,
)
from kdtable.recipes.record import EpochRecord
from kdtable.store.claims import gone, shown
from kdtable.store.damage import Damaged
from kdtable.store.files import CHECKPOINT, EPOCHS, PREVIOUS, STUDENT, leftovers, set_aside
from kdtable.store.maintenance.bulk import WholeRun, whole_runs
from kdtable.store.results import Histories, Store, batches
from kdtable.store.schema import epochs, run_id, runs, teachers
from kdtable.store.seals import EPOCH, TIMES, checked, meanings

#: Runs that are looked at together.
AT_ONCE: Final = 100

#: What of its epochs a run's row repeats.
_SHOWN: Final = [f"{which}_{what}" for which in ("last", "best", "lowest") for what in ("epoch", "top1", "top5")]

_RESTORE: Final = "restore the database from a copy, or train into another store"
_LEAVE_OUT: Final = "no table shows them; 'kdtable store copy' into a new store leaves them out"
_COMPARE: Final = "do not trust it: train it into another folder, and compare"
_TRAIN_ANEW: Final = "train it into another folder, and 'kdtable store copy' that folder to this one"
_SETS_ASIDE: Final = "the next 'kdtable run' of it sets it aside, and does again what is lost"
_FAILS: Final = "until it can be opened, or is moved away, 'kdtable run' of it fails"
_PRUNE: Final = "'kdtable store prune' removes it"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and what to do."""

    what: str
    advice: str


def check(store: Store) -> Iterator[Finding]:
    """Look at the whole store, and at every file of its runs; nothing is changed.

    Runs that are in training are left out, since their rows and files change under the eyes.
    """
    broken = list(_broken(store))
    yield from broken
    if broken:
        return  # what a damaged database says is no measure of anything else
    with store.database.read() as db:
        yield from _orphans(db)
        ids = list(db.execute(sa.select(runs.c.id).order_by(runs.c.key)).scalars())
        free = {None, *gone(db)}
    for some in batches(ids, AT_ONCE):
        for run in _read(store, some):
            if isinstance(run, Finding):
                yield run
            elif run.columns["claimed_by"] in free:
                yield from _rows(run)
                yield from _files(run, store.run_folder(run.id))
    known = set(ids)
    for folder in sorted((store.folder / "runs").glob("*")):
        if folder.name not in known:
            yield Finding(f"{folder} belongs to no run of this store", "move it away, unless another store uses it")


def _broken(store: Store) -> Iterator[Finding]:
    """What makes it useless to look any further."""
    try:
        with store.database.read() as db:
            if not store.database.is_server:
                for (text,) in db.exec_driver_sql("PRAGMA integrity_check(10)"):
                    if text != "ok":
                        yield Finding(f"the database is damaged ({' '.join(text.split())})", _RESTORE)
            protocols, histories = meanings(db), Histories(db)
            checked(teachers, db.execute(sa.select(teachers)))
            gone(db)
            for protocol, count in db.execute(
                sa.select(runs.c.protocol_id, sa.func.count()).group_by(runs.c.protocol_id)
            ):
                if protocol not in protocols:
                    yield Finding(f"{count} runs have lost what they mean", _RESTORE)
            for listed in db.execute(sa.select(runs.c.provenance).distinct()).scalars().all():
                histories.text(listed)
    except Damaged as error:
        yield Finding(f"the database is damaged ({error.what})", _RESTORE)


def _read(store: Store, ids: list[str]) -> Iterator[WholeRun | Finding]:
    """Runs, and what was found instead of them."""
    try:
        with store.database.read() as db:
            found = whole_runs(db, ids)
    except Damaged as error:
        if len(ids) == 1:
            yield Finding(f"the database is damaged ({error.what})", _RESTORE)
            return
        for one in ids:
            yield from _read(store, [one])
    else:
        yield from found


def _orphans(db: sa.Connection) -> Iterator[Finding]:
    lost = sa.select(sa.func.count()).select_from(epochs).where(epochs.c.run.not_in(sa.select(runs.c.key)))
    if count := db.execute(lost).scalar_one():
        yield Finding(f"{count} epochs belong to no run", _LEAVE_OUT)


def _rows(run: WholeRun) -> Iterator[Finding]:
    """Whether a run's own row says what its epochs say."""
    columns = run.columns
    if run_id(columns["meaning"], columns["seed"]) != run.id:
        yield Finding(f"run {run.id} is not the one that its row describes", _COMPARE)
    main = sorted((e for e in _epochs(run) if e["stage"] == "main"), key=lambda e: int(e["epoch"]))
    if [e["epoch"] for e in main] != list(range(1, len(main) + 1)):
        yield Finding(f"run {run.id} lacks epochs amid others", _COMPARE)
    if run.done and len(main) != columns["epochs"]:
        yield Finding(f"run {run.id} is done with {len(main)} of {columns['epochs']} epochs", _COMPARE)
    if main:
        found = shown(main)
        if any(columns[name] != found.get(name) for name in _SHOWN):
            yield Finding(f"the row of run {run.id} and its epochs have different numbers", _COMPARE)


def _files(run: WholeRun, folder: Path) -> Iterator[Finding]:
    for path in leftovers(folder):
        what = f"{path} was left half-written by a process that was killed"
        yield Finding(what, _PRUNE if run.done else "the next 'kdtable run' of it removes it")
    for path in set_aside(folder):
        advice = _PRUNE if run.done else "delete it when you have no use for it"
        yield Finding(f"{path} is damaged, and was set aside", advice)
    if run.done:
        yield from _finished(run, folder)
    else:
        yield from _unfinished(run, folder)
    for path in sorted((folder / EPOCHS).glob("*.pt")):
        if problem := _problem(path, run):
            yield Finding(str(problem), "delete it; nothing needs it")


def _finished(run: WholeRun, folder: Path) -> Iterator[Finding]:
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if path.exists():
            yield Finding(f"{path} is of a finished run, and continues nothing", _PRUNE)
    path = folder / STUDENT
    if not path.exists():
        if run.columns["kept"] != "none":
            yield Finding(f"{path} is missing, the student of a finished run", _TRAIN_ANEW)
        return
    try:
        _, origin = student.load(path)
        if origin.run != run.id:
            raise BadCheckpoint(f"{path} belongs to another run")
        with checkpoint.fitting(path):
            differ = _measured(origin.history) != _measured(_epochs(run))
    except BadCheckpoint as error:
        yield Finding(str(error), f"delete it, {_TRAIN_ANEW}")
        return
    if differ:
        yield Finding(f"{path} and the database have different numbers for run {run.id}", _COMPARE)


def _unfinished(run: WholeRun, folder: Path) -> Iterator[Finding]:
    there = [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.exists()]
    for path in there:
        if problem := _problem(path, run):
            yield Finding(str(problem), _FAILS if isinstance(problem, NoAccess) else _SETS_ASIDE)
    if run.epochs and not there:
        kept = folder / EPOCHS
        how = f"goes on from the newest in {kept} that is good" if any(kept.glob("*.pt")) else "begins it again"
        yield Finding(f"the checkpoint of run {run.id} is gone", f"the next 'kdtable run' of it {how}")


def _problem(path: Path, run: WholeRun) -> BadCheckpoint | None:
    """What is wrong with a checkpoint of a run."""
    try:
        state = checkpoint.load(path)
        if state.get("run") != run.id:
            return BadCheckpoint(f"{path} belongs to another run")
        with checkpoint.fitting(path):
            _compare(state, run)
    except BadCheckpoint as error:
        return error
    return None


def _compare(state: dict[str, Any], run: WholeRun) -> None:
    """Compare a state with all that the database says of its run; an exception of any kind tells a difference."""
    meaning = json.loads(run.columns["meaning"])
    stages = [*meaning.get("stages", {}).items(), ("main", run.columns["epochs"])]
    place = place_after([EpochRecord(**record) for record in state["history"]], stages)
    check_place(state, place)
    recipe = meaning.get("recipe", {})
    settings = {name: recipe[name] for name in ("momentum", "nesterov", "weight_decay") if name in recipe}
    shapes = {
        value.shape for part in ("student", "method") for value in state[part].values() if isinstance(value, Tensor)
    }
    check_scaler(state["scaler"])
    moved = place[1] > 0 and not state["scaler"]  # which may have skipped all steps
    check_optimizer(state["optimizer"], settings, lambda _, value: value.shape in shapes, moved=moved)


def _epochs(run: WholeRun) -> list[dict[str, Any]]:
    return [dict(zip(EPOCH, values, strict=True)) for values in run.epochs]


def _measured(history: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """What of a history is the same whenever it is trained."""
    names = [name for name in EPOCH if name not in TIMES]
    return sorted([epoch.get(name) for name in names] for epoch in history)
