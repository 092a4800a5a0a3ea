"""Remove runs from a store: their rows, results and files."""

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from kdtable.errors import BadRequest, Trouble, unknown
from kdtable.models.sums import canonical_teacher
from kdtable.store.claims import gone
from kdtable.store.records import Protocol, RunRecord, single_teachers
from kdtable.store.results import Store
from kdtable.store.rows import Reader, batches
from kdtable.store.schema import protocols, results, runs, teachers
from kdtable.store.shared import sweep

#: Fields of a run that a condition may name.
KEYS: Final = ("paper", "row", "student", "teacher", "data", "seed", "precision", "epochs", "status")
#: Ids that a sentence names.
NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Removal:
    """What of a selection can be removed.

    Attributes:
        runs: these can.
        kept: a sentence for each reason why others stay.
    """

    runs: tuple[RunRecord, ...]
    kept: tuple[str, ...]


def matching(found: Sequence[RunRecord], text: str) -> list[RunRecord]:
    """The runs that fit conditions such as ``row=kd,row=at,seed=3``; several values of one key are alternatives.

    Raises:
        BadRequest: not KEY=VALUE, an unknown key, or a value that no run has.
    """
    wanted: dict[str, set[str]] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise BadRequest(f"--where takes KEY=VALUE,..., not '{text}'")
        if key not in KEYS:
            raise unknown("key of --where", key, KEYS)
        value = _canonical(key, value)
        if value not in (known := {_field(run, key) for run in found}):
            raise unknown(key, value, known)
        wanted.setdefault(key, set()).add(value)
    return [run for run in found if all(_field(run, key) in values for key, values in wanted.items())]


def _field(run: RunRecord, key: str) -> str:
    value = getattr(run, key)
    return "none" if value is None else str(value)


def _canonical(key: str, value: str) -> str:
    """A network's canonical name where ``value`` is one of its spellings."""
    try:
        return canonical_teacher(value) if key in ("student", "teacher") else value
    except BadRequest:
        return value


def removable(store: Store, wanted: Collection[str]) -> Removal:
    """Which of the runs ``wanted`` can be removed: none that is being trained, or that another run starts from."""
    with store.database.read() as db:
        return _removable(db, wanted)


def _removable(db: sa.Connection, wanted: Collection[str]) -> Removal:
    found = Reader(db).runs()
    ended = {None, *gone(db)}
    training = [run.id for run in found if run.id in wanted and run.status == "running" and run.claimed_by not in ended]
    needs = _needs(found)
    going = {run.id for run in found if run.id in wanted} - set(training)
    kept = [f"{_runs(training)} being trained, and stay{'' if training[1:] else 's'}"] if training else []
    reasons: dict[str, list[str]] = {}
    while not going.isdisjoint(
        staying := {need for run in found if run.id not in going for need in needs[run.protocol.id]}
    ):
        for run in found:
            for need in needs[run.protocol.id] & going if run.id not in going else ():
                reasons.setdefault(need, []).append(run.id)
        going -= staying
    kept += [f"run {need} stays, since {_runs(by, 'starts', 'start')} from it" for need, by in reasons.items()]
    return Removal(tuple(run for run in found if run.id in going), tuple(kept))


def _needs(found: Iterable[RunRecord]) -> Mapping[str, frozenset[str]]:
    """Protocol to the ids of the runs that its runs start from."""
    return {protocol.id: _starts(protocol) for protocol in {run.protocol.id: run.protocol for run in found}.values()}


def _starts(protocol: Protocol) -> frozenset[str]:
    identity = protocol.identity
    refs = [*single_teachers(identity.get("teacher")), *single_teachers(identity.get("start"))]
    return frozenset(ref["run"] for ref in refs if "run" in ref)


def _runs(ids: Sequence[str], one: str = "is", several: str = "are") -> str:
    """``run 1a2b is``, ``runs 1a2b, 3c4d are``, or with their number where there are many."""
    if len(ids) == 1:
        return f"run {ids[0]} {one}"
    some = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
    return f"{len(ids):,} runs ({some}) {several}"


def remove(store: Store, ids: Collection[str]) -> None:
    """Remove runs, which :func:`removable` listed: first their rows, in one transaction, then their files.

    If it is killed in between, :func:`kdtable.store.maintenance.checking.check` names the folders that are left.

    Raises:
        Trouble: since then one of them was claimed or became another's start; or a file cannot be removed.
    """
    with store.database.write(alone=True) as db:
        if {run.id for run in _removable(db, ids).runs} != set(ids):
            raise Trouble("other processes changed these runs just now: see what is left, and call again")
        for some in batches(ids):
            keys = sa.select(runs.c.key).where(runs.c.id.in_(some))
            db.execute(results.delete().where(results.c.run.in_(keys)))  # with their histories
            db.execute(runs.delete().where(runs.c.id.in_(some)))
            db.execute(teachers.delete().where(teachers.c.sha256.in_(some)))
        db.execute(protocols.delete().where(protocols.c.id.not_in(sa.select(runs.c.protocol_id))))
    try:
        sweep(store, ids)
    except OSError as error:
        raise Trouble(f"{error.filename} cannot be removed ({error.strerror}): remove it by hand") from error
    for run_id in ids:
        folder = store.run_folder(run_id)
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            where = error.filename or folder
            raise Trouble(f"{where} cannot be removed ({error.strerror}): remove {folder} by hand") from error
