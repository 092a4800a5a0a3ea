"""Check the integrity of a store: its database, and the files of its runs."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from torch import Tensor

from kdtable.checkpoints import checkpoint, student
from kdtable.checkpoints.checkpoint import BadCheckpoint, NoAccess
from kdtable.checkpoints.validation import (
    check_optimizer,
    check_scaler,
    read_position,
)
from kdtable.files import remote
from kdtable.methods.objective import stage_epochs
from kdtable.recipes.metrics import PROBES
from kdtable.recipes.record import EpochRecord
from kdtable.store import shared
from kdtable.store.claims import gone
from kdtable.store.files import CHECKPOINT, EPOCHS, PREVIOUS, STUDENT, leftovers, older_folder, set_aside
from kdtable.store.integrity import Damaged
from kdtable.store.maintenance.bulk import WholeRun, whole_runs
from kdtable.store.records import RunRecord, choose, measured
from kdtable.store.results import Store
from kdtable.store.rows import Reader, batches, teacher_records
from kdtable.store.schema import results, run_id, runs
from kdtable.store.shared import SharedFile

#: Runs checked in one query.
AT_ONCE: Final = 100

#: Broken foreign keys that are listed.
NAMED: Final = 5

_RESTORE: Final = "restore the database from a copy, or train into another store"
_COMPARE: Final = "do not trust it: train it into another folder, and compare"
_TRAIN_ANEW: Final = "train it into another folder, and 'kdtable store copy' that folder to this one"
_SETS_ASIDE: Final = "the next 'kdtable run' of it sets it aside, and does again what is lost"
_FAILS: Final = "until it can be opened, or is moved away, 'kdtable run' of it fails"
_PRUNE: Final = "'kdtable store prune' removes it"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and what to do about it."""

    what: str
    advice: str


def check(store: Store) -> Iterator[Finding]:
    """Check the whole store and every file of its runs; change nothing.

    Runs in training are left out, since their rows and files are changing.
    """
    broken = list(_database_findings(store))
    yield from broken
    if broken:
        return  # nothing can be checked against a damaged database
    with store.database.read() as db:
        ids = list(db.execute(sa.select(runs.c.id).order_by(runs.c.key)).scalars())
        free = {None, *gone(db)}
    for some in batches(ids, AT_ONCE):
        yield from _check_runs(store, some, free)
    known = set(ids)
    for folder in sorted((store.folder / "runs").glob("*")):
        if folder.name not in known:
            yield Finding(f"{folder} belongs to no run of this store", "move it away, unless another store uses it")


def _database_findings(store: Store) -> Iterator[Finding]:
    """Damage of the database, after which no further check makes sense."""
    try:
        with store.database.read() as db:
            if not store.database.is_server:
                for (text,) in db.exec_driver_sql("PRAGMA quick_check(10)"):
                    if text != "ok":
                        yield Finding(f"the database is damaged ({' '.join(text.split())})", _RESTORE)
                for table, *_ in db.exec_driver_sql("PRAGMA foreign_key_check").all()[:NAMED]:
                    yield Finding(f"a row of the table {table} belongs to none of those that it names", _RESTORE)
            teacher_records(db)
            gone(db)
            reader = Reader(db)
            for listed in db.execute(sa.select(results.c.provenance).distinct()).scalars().all():
                reader.provenance(listed)
    except Damaged as error:
        yield Finding(f"the database is damaged ({error.what})", _RESTORE)


def _check_runs(store: Store, ids: list[str], free: Collection[str | None]) -> Iterator[Finding]:
    """Check runs together; if one cannot be read, each alone."""
    try:
        with store.database.read() as db:
            found = [(run, run.history()) for run in whole_runs(db, ids) if run.record.claimed_by in free]
            older = [(other, run.history(code)) for run, _ in found for code, other in _older(run)]
    except Damaged as error:
        if len(ids) == 1:
            yield Finding(f"the database is damaged ({error.what})", _RESTORE)
            return
        for one in ids:
            yield from _check_runs(store, [one], free)
        return
    elsewhere = shared.files_of(store, [run.id for run, _ in found])
    for run, history in found:
        yield from _row_findings(run.record, history)
        yield from _file_findings(run.record, history, store.run_folder(run.id), elsewhere.get(run.id, []))
    for other, history in older:
        yield from _row_findings(other, history)
        if other.result:
            yield from _finished_findings(other, history, older_folder(store.run_folder(other.id), other.result.code))


def _older(run: WholeRun) -> Iterator[tuple[str, RunRecord]]:
    """The hash of each finished result by other code, and the run with it in place of the current one."""
    for result in run.results:
        if result.finished and result.code != run.code:
            yield result.code, replace(run.record, status="done", result=result, kept="none")


def _row_findings(run: RunRecord, history: Sequence[EpochRecord]) -> Iterator[Finding]:
    """Disagreements between a run's row and its epochs."""
    if run_id(run.protocol.identity, run.seed) != run.id:
        yield Finding(f"run {run.id} is not the one that its row describes", _COMPARE)
    main = [record.epoch for record in history if record.stage == "main"]
    if main != list(range(1, len(main) + 1)):
        yield Finding(f"run {run.id} lacks epochs amid others", _COMPARE)
    if run.done and len(main) != run.epochs:
        yield Finding(f"run {run.id} is done with {len(main)} of {run.epochs} epochs", _COMPARE)
    chosen = run.result.chosen if run.result else {}
    expected = choose(history, run.protocol.main)
    if {name: tuple(found) for name, found in chosen.items() if name != PROBES} != expected:
        yield Finding(f"the row of run {run.id} and its epochs have different numbers", _COMPARE)


def _file_findings(
    run: RunRecord, history: Sequence[EpochRecord], folder: Path, elsewhere: Sequence[SharedFile]
) -> Iterator[Finding]:
    for path in leftovers(folder):
        what = f"{path} was left half-written by a process that was killed"
        yield Finding(what, _PRUNE if run.done else "the next 'kdtable run' of it removes it")
    for path in set_aside(folder):
        advice = _PRUNE if run.done else "delete it when you have no use for it"
        yield Finding(f"{path} is damaged, and was set aside", advice)
    if elsewhere:
        yield from _shared_findings(elsewhere)
    elif run.done:
        yield from _finished_findings(run, history, folder)
    else:
        yield from _unfinished_findings(run, history, folder)
    for path in sorted((folder / EPOCHS).glob("*.pt")):
        if problem := _problem(path, run):
            yield Finding(str(problem), "delete it; nothing needs it")


def _shared_findings(files: Sequence[SharedFile]) -> Iterator[Finding]:
    """What is wrong with a run's files at URLs; their content is checked when it is used."""
    for file in files:
        what = f"the {file.kind} of run {file.run}, {file.url},"
        advice = _TRAIN_ANEW if file.kind == shared.STUDENT else "the next 'kdtable run' of it does again what is lost"
        try:
            size = remote.size_of(file.url)
        except OSError as error:
            yield Finding(f"{what} cannot be seen ({error.strerror})", "see to that, and check again")
            continue
        if size != file.size:
            yield Finding(f"{what} is {'gone' if size is None else 'damaged'}", advice)


def _finished_findings(run: RunRecord, history: Sequence[EpochRecord], folder: Path) -> Iterator[Finding]:
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if path.exists():
            yield Finding(f"{path} is of a finished run, and continues nothing", _PRUNE)
    path = folder / STUDENT
    if not path.exists():
        if run.result and (moved := older_folder(folder, run.result.code)).is_dir():
            yield Finding(f"{moved} has the weights of run {run.id}", "the next 'kdtable run' of it puts them back")
        elif run.kept != "none":
            yield Finding(f"{path} is missing, the student of a finished run", _TRAIN_ANEW)
        return
    try:
        _, origin = student.load(path)
        if origin.run != run.id:
            raise BadCheckpoint(f"{path} belongs to another run")
        with checkpoint.fitting(path):
            differ = measured(map(student.record_of, origin.history)) != measured(history)
    except BadCheckpoint as error:
        yield Finding(str(error), f"delete it, {_TRAIN_ANEW}")
        return
    if differ:
        yield Finding(f"{path} and the database have different numbers for run {run.id}", _COMPARE)


def _unfinished_findings(run: RunRecord, history: Sequence[EpochRecord], folder: Path) -> Iterator[Finding]:
    there = [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.exists()]
    for path in there:
        if problem := _problem(path, run):
            yield Finding(str(problem), _FAILS if isinstance(problem, NoAccess) else _SETS_ASIDE)
    if history and not there:
        kept = folder / EPOCHS
        how = f"goes on from the newest in {kept} that is good" if any(kept.glob("*.pt")) else "begins it again"
        yield Finding(f"the checkpoint of run {run.id} is gone", f"the next 'kdtable run' of it {how}")


def _problem(path: Path, run: RunRecord) -> BadCheckpoint | None:
    """What is wrong with a checkpoint of a run; ``None`` if nothing is."""
    try:
        state = checkpoint.load(path)
        if state.get("run") != run.id:
            return BadCheckpoint(f"{path} belongs to another run")
        with checkpoint.fitting(path):
            _compare(state, run)
    except BadCheckpoint as error:
        return error
    return None


def _compare(state: dict[str, Any], run: RunRecord) -> None:
    """Compare a checkpoint's state with the database's record of its run; raise an exception if they differ."""
    identity = run.protocol.identity
    own, recipe = identity.get("stages", {}), identity.get("recipe", {})
    stages = list(stage_epochs(own, recipe.get("epochs", run.epochs)).items())
    _, (position, epoch) = read_position(state, stages)
    probed = "main" in own and stages[min(position, len(stages) - 1)][0] == "main"
    # a probe's optimiser is its own
    settings = {
        name: recipe[name] for name in ("momentum", "nesterov", "weight_decay") if name in recipe and not probed
    }
    shapes = {
        value.shape for part in ("student", "method") for value in state[part].values() if isinstance(value, Tensor)
    }
    check_scaler(state["scaler"])
    moved = epoch > 0 and not state["scaler"]  # a scaler may have skipped all steps
    check_optimizer(state["optimizer"], settings, lambda _, value: value.shape in shapes, moved=moved)
