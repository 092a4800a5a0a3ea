"""Who trains what: a process that trains claims runs, beats while it lives, and writes only what it holds."""

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import sqlalchemy as sa

from kdtable.errors import BadRequest
from kdtable.store.liveness import BEATS_PER_LEASE, Process, Pulse, Watch, lease, own_process
from kdtable.store.results import Store, batches, insert_new, now, rows_of
from kdtable.store.schema import epochs, origin_row, origins, runs, workers
from kdtable.store.seals import EPOCH, change_runs, check_epochs, checked, epochs_seal, replace_runs, sealed

_SHOWN: Final = {"epoch": "epoch", "top1": "test_top1", "top5": "test_top5"}

#: What checkpoints of before it was measured do not say of an epoch.
_LATER: Final = {"waited": 0.0, "test_loss": None}

_RELEASED: Final = {"status": "planned", "claimed_by": None}
_running: Final = sa.select(runs).where(runs.c.status == "running")

#: Only runs in training are claimed, and their status has an index.
_holders: Final = sa.select(runs.c.claimed_by).where(runs.c.status == "running", runs.c.claimed_by.is_not(None))


class ClaimLost(Exception):
    """A run that this process began was taken over by another, since this one had been silent for too long."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Where runs stand at one moment.

    Attributes:
        statuses: by run id.
        free: ids of those that nobody trains: planned, or claimed by a process that died.
        elsewhere: run id to the live process that trains it.
    """

    statuses: Mapping[str, str]
    free: frozenset[str]
    elsewhere: Mapping[str, Process]


class Worker:
    """This process as one that trains: a context in which it beats, and may claim runs.

    At the end of the block the claims that it still holds are released.
    """

    def __init__(self, store: Store) -> None:
        self._database = store.database
        self.id = uuid4().hex
        self.lease = lease()
        self._watch = Watch(self.lease)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        with self._database.write(alone=True) as db:
            _forget_the_dead(db)
            db.execute(workers.insert(), [self._row(0)])
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._heart.join()
        with self._database.write() as db:
            change_runs(db, _running.where(runs.c.claimed_by == self.id), _RELEASED)
            db.execute(workers.delete().where(workers.c.id == self.id))

    def _row(self, beat: int) -> dict[str, Any]:
        """This process as the store shows it after so many beats."""
        me = own_process(os.getpid())
        known = {"id": self.id, "host": me.host, "machine": me.machine, "pid": me.pid, "started": me.started}
        return sealed(workers, known | {"beat": beat, "seen": now()})

    def _beat(self) -> None:
        mine = workers.update().where(workers.c.id == self.id)
        beats = 0
        while not self._ended.wait(self.lease / BEATS_PER_LEASE):
            beats += 1
            try:
                with self._database.write() as db:
                    db.execute(mine.values(self._row(beats)))
            except BadRequest:
                # Perhaps a moment's trouble. If it lasts, the process learns of it from its own next write.
                continue

    def survey(self, ids: Iterable[str]) -> Survey:
        """Where the runs ``ids`` stand; looked at repeatedly, it also finds the silent."""
        with self._database.read() as db:
            living = self._living(db)
            found = [(row.id, row.status, row.claimed_by) for row in rows_of(db, ids)]
        return Survey(
            {run_id: status for run_id, status, _ in found},
            frozenset(
                i for i, status, owner in found if status == "planned" or (status == "running" and owner not in living)
            ),
            {i: living[owner] for i, status, owner in found if status == "running" and owner in living},
        )

    def claim(self, ids: Iterable[str], origin: Mapping[str, Any]) -> list[str]:
        """Take those of ``ids`` that are planned, or claimed by a process that died, and mark them as running.

        ``origin`` (code, packages, device, numerics) is kept with each run; a run that is continued under another
        one lists both.

        Returns:
            The ids that are ours now, in the order in which they were given.
        """
        wanted = list(ids)
        made = origin_row(origin)
        with self._database.write(alone=True) as db:
            abandoned = sa.or_(runs.c.claimed_by.is_(None), runs.c.claimed_by.not_in(list(self._living(db))))
            free = sa.or_(runs.c.status == "planned", sa.and_(runs.c.status == "running", abandoned))
            # A row that another process is just writing is not free, however long that process takes.
            query = sa.select(runs).where(free).with_for_update(skip_locked=True)
            found = {
                row.id: row
                for some in batches(wanted)
                for row in checked(runs, db.execute(query.where(runs.c.id.in_(some))))
            }
            if found:
                insert_new(db, origins, [made])
            replace_runs(db, {row.key: self._claimed(row, made["id"]) for row in found.values()})
        return [run_id for run_id in wanted if run_id in found]

    def _claimed(self, row: sa.Row[Any], origin: str) -> dict[str, Any]:
        """A run's columns once it is ours."""
        known = json.loads(row.provenance or "[]")
        return {
            **row._mapping,
            "status": "running",
            "claimed_by": self.id,
            "reason": None,
            "finished": None,
            "provenance": json.dumps(known if known[-1:] == [origin] else [*known, origin]),
            "started": row.started or now(),
        }

    def claims(self) -> list[str]:
        """Ids of the runs that are ours at this moment."""
        with self._database.read() as db:
            return list(db.execute(sa.select(runs.c.id).where(runs.c.claimed_by == self.id)).scalars())

    def release(self, ids: Iterable[str]) -> None:
        """Mark those of ``ids`` that are still ours as planned again; their checkpoints stay."""
        with self._database.write() as db:
            for some in batches(ids):
                change_runs(db, _running.where(runs.c.id.in_(some), runs.c.claimed_by == self.id), _RELEASED)

    def _living(self, db: sa.Connection) -> dict[str, Process]:
        """The workers that hold claims and are not known to be dead, by their ids."""
        pulses = pulses_in(db, workers.c.id.in_(_holders))
        dead = self._watch.dead(pulses)
        return {pulse.worker: pulse.process for pulse in pulses if pulse.worker not in dead}

    @contextmanager
    def holding(self, run_id: str) -> Iterator["Held"]:
        """One transaction in which a run is ours and stays so: what it changes in the run's folder is safe too.

        Raises:
            ClaimLost: another process took it.
        """
        query = sa.select(runs).where(runs.c.id == run_id, runs.c.claimed_by == self.id).with_for_update()
        with self._database.write() as db:
            found = checked(runs, db.execute(query))
            if not found:
                raise ClaimLost(f"run {run_id} was taken over by another process, since this one was silent for long")
            yield Held(db, found[0])


class Held:
    """A run that is ours for the length of a transaction."""

    def __init__(self, db: sa.Connection, row: sa.Row[Any]) -> None:
        self._db = db
        self._key = row.key
        self._columns = dict(row._mapping)

    def record(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Make the run's epochs those of its history.

        The whole history is given, so that an epoch whose checkpoint was written but which never reached the store
        is repaired by the next call, as is one that was stored and whose checkpoint is lost.
        """
        records = list(history)
        known = self._db.execute(sa.select(*(epochs.c[name] for name in EPOCH)).where(epochs.c.run == self._key)).all()
        check_epochs(self._columns["id"], self._columns["epochs_seal"], known)
        wanted = {(record["stage"], record["epoch"]) for record in records}
        seen = {(row.stage, row.epoch): tuple(row) for row in known}
        for stage, epoch in seen.keys() - wanted:
            place = (epochs.c.run == self._key, epochs.c.stage == stage, epochs.c.epoch == epoch)
            self._db.execute(epochs.delete().where(*place))
        missing = [epoch_row(self._key, r) for r in records if (r["stage"], r["epoch"]) not in seen]
        if missing:
            self._db.execute(epochs.insert(), missing)
        kept = [values for place, values in seen.items() if place in wanted]
        added = [[row[name] for name in EPOCH] for row in missing]
        self._set(**summary(records), epochs_seal=epochs_seal([*kept, *added]))

    def finish(self, history: Iterable[Mapping[str, Any]], kept: str) -> None:
        """Record the whole history and mark the run as done; ``kept`` (all, last, none) says of which weights."""
        self.record(history)
        self._set(status="done", finished=now(), claimed_by=None, kept=kept)

    def fail(self, reason: str) -> None:
        """Mark the run as failed, with its reason."""
        text = reason.replace("\0", "\N{REPLACEMENT CHARACTER}")  # which PostgreSQL takes in no text
        self._set(status="failed", reason=text, finished=now(), claimed_by=None)

    def restart(self) -> None:
        """Forget the epochs of a run that begins again from its first epoch, and where those came from."""
        origin = self._columns["provenance"]
        self._db.execute(epochs.delete().where(epochs.c.run == self._key))
        cleared = {f"{name}_{key}": None for name in ("last", "best", "lowest") for key in _SHOWN}
        latest = json.dumps(json.loads(origin or "[]")[-1:])
        self._set(wall_seconds=0.0, terms=None, provenance=latest, epochs_seal=None, **cleared)

    def _set(self, **values: Any) -> None:
        self._columns |= values
        replace_runs(self._db, {self._key: self._columns})


def epoch_row(key: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's columns, for the run of that key."""
    return {"run": key} | {name: record.get(name, _LATER[name]) if name in _LATER else record[name] for name in EPOCH}


def summary(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run's own row says about its epochs."""
    values: dict[str, Any] = {"wall_seconds": sum(r["seconds"] for r in records)}
    main = [r for r in records if r["stage"] == "main"]
    if main:
        values["terms"] = json.dumps(main[-1]["terms"])
        if main[-1].get("branches"):
            values["branches"] = json.dumps(main[-1]["branches"])
        values |= shown(main)
    return values


def shown(main: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns of a run that repeat some epochs of its main stage, which are given in order.

    These are the last one; the best, which is the first of the highest top-1; and the "lowest", which is the first of
    the lowest loss on the test images, where that was measured.
    """
    chosen = {"last": main[-1], "best": max(main, key=lambda r: float(r["test_top1"]))}
    if judged := [r for r in main if r.get("test_loss") is not None]:
        chosen["lowest"] = min(judged, key=lambda r: float(r["test_loss"]))
    return {f"{name}_{key}": record[column] for name, record in chosen.items() for key, column in _SHOWN.items()}


def pulse_of(row: sa.Row[Any]) -> Pulse:
    """A worker's row as what a watch looks at."""
    return Pulse(row.id, Process(row.host, row.machine, row.pid, row.started), row.beat)


def pulses_in(db: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Pulse]:
    """All workers of the store, or those for which a condition holds."""
    return [pulse_of(row) for row in checked(workers, db.execute(sa.select(workers).where(*where)))]


def gone(db: sa.Connection) -> list[str]:
    """Ids of the workers that are known to have ended."""
    return [pulse.worker for pulse in pulses_in(db) if pulse.process.gone]


def _forget_the_dead(db: sa.Connection) -> None:
    """Drop workers that are known to have ended, and whose claims were all taken over."""
    ended = [pulse.worker for pulse in pulses_in(db, workers.c.id.not_in(_holders)) if pulse.process.gone]
    db.execute(workers.delete().where(workers.c.id.in_(ended)))
