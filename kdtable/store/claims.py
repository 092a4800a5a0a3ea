"""Claims: a training process claims runs, sends heartbeats, and writes only to the runs it holds."""

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
from kdtable.recipes.metrics import Metric
from kdtable.recipes.record import EpochRecord
from kdtable.store.liveness import BEATS_PER_LEASE, Process, Pulse, Watch, lease, own_process
from kdtable.store.records import choose, packed
from kdtable.store.results import Store
from kdtable.store.rows import batches, insert_new, legible, now
from kdtable.store.schema import histories, origin_row, origins, protocols, results, runs, workers
from kdtable.store.shared import SharedFile, announce, commit, withdraw

_RELEASED: Final = {"status": "planned", "claimed_by": None}

#: Workers that hold claims. Only running runs are claimed; ``status`` is indexed.
_holders: Final = sa.select(runs.c.claimed_by).where(runs.c.status == "running", runs.c.claimed_by.is_not(None))


class ClaimLost(Exception):
    """Another process took over a run, since this process sent no heartbeat for too long."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The state of runs at one moment.

    Attributes:
        statuses: run id to status.
        free: ids of runs that can be claimed: planned, or claimed by a dead process.
        elsewhere: run id to the live process that is training it.
    """

    statuses: Mapping[str, str]
    free: frozenset[str]
    elsewhere: Mapping[str, Process]


class Worker:
    """A context in which this process sends heartbeats and may claim runs.

    Leaving the context releases the claims it still holds.

        with Worker(store) as worker:
            claimed = worker.claim(ids, origin)
    """

    def __init__(self, store: Store) -> None:
        self._database = store.database
        self.id = uuid4().hex
        self.lease = lease()
        self._attempts: dict[str, int] = {}
        self._watch = Watch(self.lease)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        with self._database.write(alone=True) as db:
            _delete_dead_workers(db)
            db.execute(workers.insert(), [self._row(0)])
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self._database.patience.seconds = 0.0  # who ends a command does not wait for a server that is away
        self._ended.set()
        self._heart.join()
        with self._database.write() as db:
            db.execute(runs.update().where(*self._mine).values(_RELEASED))
            db.execute(workers.delete().where(workers.c.id == self.id))

    def _row(self, beat: int) -> dict[str, Any]:
        """The row of this process after ``beat`` heartbeats."""
        me = own_process(os.getpid())
        known = {"id": self.id, "host": me.host, "machine": me.machine, "pid": me.pid, "started": me.started}
        return known | {"beat": beat, "seen": now()}

    @property
    def _mine(self) -> tuple[sa.ColumnElement[bool], ...]:
        return runs.c.status == "running", runs.c.claimed_by == self.id

    def _beat(self) -> None:
        mine = workers.update().where(workers.c.id == self.id)
        beats = 0
        while not self._ended.wait(self.lease / BEATS_PER_LEASE):
            beats += 1
            try:
                with self._database.write() as db:
                    db.execute(mine.values(self._row(beats)))
            except BadRequest:
                # Perhaps a passing failure. If it lasts, the process's next write fails too.
                continue

    def survey(self, ids: Iterable[str]) -> Survey:
        """The state of the runs ``ids``. Repeated calls also detect processes on other machines that died."""
        with self._database.read() as db:
            living = self._living(db)
            query = sa.select(runs.c.id, runs.c.status, runs.c.claimed_by)
            found = [tuple(row) for some in batches(ids) for row in db.execute(query.where(runs.c.id.in_(some)))]
        return Survey(
            {run_id: status for run_id, status, _ in found},
            frozenset(
                i for i, status, owner in found if status == "planned" or (status == "running" and owner not in living)
            ),
            {i: living[owner] for i, status, owner in found if status == "running" and owner in living},
        )

    def claim(self, ids: Iterable[str], origin: Mapping[str, Any]) -> list[str]:
        """Claim those of ``ids`` that are planned or whose process died, and mark them as running.

        Each claim is a new attempt. ``origin`` (code, packages, device, numerics) is stored with the result.
        Continuing an unfinished result under another origin lists both, and moves the result to the new code.
        A finished result stays, and the new code gets its own.

        Returns:
            The ids now claimed by this worker, in the order given.
        """
        wanted = list(ids)
        made = origin_row(origin)
        with self._database.write(alone=True) as db:
            abandoned = sa.or_(runs.c.claimed_by.is_(None), runs.c.claimed_by.not_in(list(self._living(db))))
            free = sa.or_(runs.c.status == "planned", sa.and_(runs.c.status == "running", abandoned))
            # Rows that another process is writing are skipped, however long its write takes.
            query: sa.Select[Any] = sa.select(runs.c.id, runs.c.key, runs.c.code, runs.c.attempt).where(free)
            query = query.with_for_update(skip_locked=True)
            found = {row.id: row for some in batches(wanted) for row in db.execute(query.where(runs.c.id.in_(some)))}
            if found:
                insert_new(db, origins, [made])
            for row in found.values():
                code = _begin(db, row, origin["source"], made["id"])
                claimed = {"status": "running", "claimed_by": self.id, "reason": None, "code": code}
                db.execute(runs.update().where(runs.c.key == row.key).values(attempt=row.attempt + 1, **claimed))
        self._attempts |= {row.id: row.attempt + 1 for row in found.values()}
        return [run_id for run_id in wanted if run_id in found]

    def attempt(self, run_id: str) -> int:
        """Number of this worker's latest claim of a run."""
        return self._attempts[run_id]

    def claims(self) -> list[str]:
        """Ids of the runs that this worker holds."""
        with self._database.read() as db:
            return list(db.execute(sa.select(runs.c.id).where(runs.c.claimed_by == self.id)).scalars())

    def release(self, ids: Iterable[str]) -> None:
        """Mark the runs of ``ids`` that this worker still holds as planned again. Their checkpoints stay."""
        with self._database.write() as db:
            for some in batches(ids):
                db.execute(runs.update().where(runs.c.id.in_(some), *self._mine).values(_RELEASED))

    def _living(self, db: sa.Connection) -> dict[str, Process]:
        """Workers that hold claims and are not known to be dead, by id."""
        pulses = pulses_in(db, workers.c.id.in_(_holders))
        dead = self._watch.dead(pulses)
        return {pulse.worker: pulse.process for pulse in pulses if pulse.worker not in dead}

    @contextmanager
    def holding(self, run_id: str) -> Iterator["Held"]:
        """Open a transaction during which this worker keeps its claim, so it may also write to the run's folder.

        Raises:
            ClaimLost: another process took the run over.
        """
        # The attempt distinguishes this claim from a later one by the same worker.
        ours = (runs.c.id == run_id, runs.c.claimed_by == self.id, runs.c.attempt == self._attempts.get(run_id))
        query = sa.select(runs.c.key, runs.c.code, protocols.c.metrics).where(runs.c.protocol_id == protocols.c.id)
        with self._database.write() as db:
            row = db.execute(query.where(*ours).with_for_update(of=runs)).one_or_none()
            if row is None:
                raise ClaimLost(f"run {run_id} was taken over by another process, since this one was silent for long")
            with legible("a task's metrics"):
                main = Metric(**json.loads(row.metrics)[0])
            yield Held(db, row.key, row.code, main)


class Held:
    """A claimed run, for the length of one transaction.

    Args:
        db: the transaction.
        key: primary key of the run.
        code: source hash of its current result.
        main: metric that chooses the best epoch.
    """

    def __init__(self, db: sa.Connection, key: int, code: str, main: Metric) -> None:
        self._db = db
        self._key = key
        self._code = code
        self._main = main

    def record(
        self,
        history: Sequence[EpochRecord],
        parameters: int | None = None,
        method_parameters: int | None = None,
    ) -> None:
        """Replace the run's stored epochs by its whole history.

        Writing the whole history repairs an epoch that has a checkpoint but never reached the store, and one that
        was stored but whose checkpoint is lost.

        Args:
            history: all epochs, in order of training.
            parameters: number of parameters of the student.
            method_parameters: number of parameters of the method's own networks.
        """
        self._delete_history()
        self._db.execute(histories.insert().values(run=self._key, code=self._code, content=packed(history)))
        self._set_result(
            chosen=json.dumps(choose(history, self._main)),
            parameters=parameters,
            method_parameters=method_parameters,
            wall_seconds=sum(record.seconds for record in history),
            waited_seconds=sum(record.waited for record in history),
            cpu_seconds=_sum([record.cpu_seconds for record in history]),
        )

    def finish(
        self,
        history: Sequence[EpochRecord],
        kept: str,
        parameters: int | None = None,
        method_parameters: int | None = None,
    ) -> None:
        """Record the whole history and mark the run as done. ``kept`` (all, last, none): which weights are on disk."""
        self.record(history, parameters, method_parameters)
        self._set_result(finished=now())
        self._set_run(status="done", claimed_by=None, kept=kept)

    def announce(self, file: SharedFile) -> None:
        """Note a file that is about to be written to a URL."""
        announce(self._db, file)

    def commit(self, url: str) -> None:
        """Make a file that was written to a URL one of the run's."""
        commit(self._db, url, self._key, self._code)

    def withdraw(self, keep: int) -> None:
        """Let go of the run's checkpoints at URLs, but for the newest ``keep``."""
        withdraw(self._db, self._key, self._code, keep)

    def fail(self, reason: str) -> None:
        """Mark the run as failed, with a reason."""
        text = reason.replace("\0", "\N{REPLACEMENT CHARACTER}")  # PostgreSQL text cannot hold NUL
        self._set_run(status="failed", reason=text, claimed_by=None)

    def restart(self) -> None:
        """Drop the epochs of a run that restarts from its first epoch, and all but its latest origin."""
        self._delete_history()
        listed = self._db.execute(sa.select(results.c.provenance).where(*self._result)).scalar_one()
        with legible("where a result came from"):
            latest = json.dumps(json.loads(listed)[-1:])
        self._set_result(chosen="{}", wall_seconds=0.0, waited_seconds=0.0, cpu_seconds=None, provenance=latest)

    @property
    def _result(self) -> tuple[sa.ColumnElement[bool], ...]:
        return results.c.run == self._key, results.c.code == self._code

    def _delete_history(self) -> None:
        self._db.execute(histories.delete().where(histories.c.run == self._key, histories.c.code == self._code))

    def _set_result(self, **values: Any) -> None:
        self._db.execute(results.update().where(*self._result).values(values))

    def _set_run(self, **values: Any) -> None:
        self._db.execute(runs.update().where(runs.c.key == self._key).values(values))


def _begin(db: sa.Connection, run: sa.Row[Any], code: str, origin: str) -> str:
    """Continue a run's unfinished result, or start one of ``code``; return the hash that it has from now on."""
    of_run, of_code = results.c.run == run.key, results.c.code == code
    query = sa.select(results.c.provenance, results.c.finished).where(of_run, results.c.code == run.code)
    current = db.execute(query).one_or_none()
    if run.code != code:
        if current is None or current.finished:
            db.execute(results.delete().where(of_run, of_code))
            made = {"provenance": json.dumps([origin]), "started": now()}
            db.execute(results.insert().values(run=run.key, code=code, **made))
            return code
        if db.execute(sa.select(results.c.code).where(of_run, of_code)).first():
            code = run.code  # a finished result of this code is kept, so the unfinished one stays where it is
    with legible("where a result came from"):
        listed = json.loads(current.provenance if current else "[]")
    listed = listed if listed[-1:] == [origin] else [*listed, origin]
    changes = {"code": code, "provenance": json.dumps(listed), "finished": None}
    db.execute(results.update().where(of_run, results.c.code == run.code).values(changes))
    return code


def pulse_of(row: sa.Row[Any]) -> Pulse:
    """A worker's row as a :class:`Pulse`."""
    return Pulse(row.id, Process(row.host, row.machine, row.pid, row.started), row.beat)


def pulses_in(db: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Pulse]:
    """All workers of the store, or those that meet the conditions."""
    return [pulse_of(row) for row in db.execute(sa.select(workers).where(*where))]


def gone(db: sa.Connection) -> list[str]:
    """Ids of the workers that are known to have ended."""
    return [pulse.worker for pulse in pulses_in(db) if pulse.process.gone]


def _delete_dead_workers(db: sa.Connection) -> None:
    """Delete workers that are known to have ended and hold no claims."""
    ended = [pulse.worker for pulse in pulses_in(db, workers.c.id.not_in(_holders)) if pulse.process.gone]
    db.execute(workers.delete().where(workers.c.id.in_(ended)))


def _sum(parts: Sequence[float | None]) -> float | None:
    """The sum, if every part is known."""
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None
