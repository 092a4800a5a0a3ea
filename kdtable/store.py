"""The store: a database of runs and their epochs, and a folder of checkpoints beside it.

One row per run and one per epoch. A run's row holds its whole meaning and where its numbers came from. Every change
is one transaction; checkpoints are written to a temporary file and renamed.

Accuracies are shares in [0, 1], times are UTC in ISO 8601, durations are seconds.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from kdtable.errors import BadRequest

SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "kdtable.sqlite"

#: A look at the lock holds it for an instant, which must not refuse whoever wants to train.
LOCK_ATTEMPTS: Final = 5
LOCK_PAUSE: Final = 0.1  # seconds

_tables = sa.MetaData()

_SHOWN: Final = {"epoch": "epoch", "top1": "test_top1", "top5": "test_top5"}

_meta = sa.Table("meta", _tables, sa.Column("schema_version", sa.Integer, nullable=False))

#: status: planned, running, done, failed, or n/a (with the reason why its method cannot be run on its pair).
runs = sa.Table(
    "runs",
    _tables,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(16), unique=True, nullable=False),
    sa.Column("protocol_id", sa.String(16), index=True, nullable=False),
    sa.Column("status", sa.String(8), index=True, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("row", sa.String, nullable=False),
    sa.Column("student", sa.String, nullable=False),
    sa.Column("teacher", sa.String),
    sa.Column("teacher_sha256", sa.String(64)),
    sa.Column("data", sa.String, nullable=False),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("precision", sa.String, nullable=False),
    sa.Column("meaning", sa.Text, nullable=False),
    sa.Column("provenance", sa.Text),
    sa.Column("epochs", sa.Integer, nullable=False),
    # What the tables show, kept here because a report must not read every epoch of every run.
    sa.Column("last_epoch", sa.Integer),
    sa.Column("last_top1", sa.Float),
    sa.Column("last_top5", sa.Float),
    sa.Column("best_epoch", sa.Integer),
    sa.Column("best_top1", sa.Float),
    sa.Column("best_top5", sa.Float),
    sa.Column("wall_seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("terms", sa.Text),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("started", sa.String),
    sa.Column("finished", sa.String),
)

epochs = sa.Table(
    "epochs",
    _tables,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.key"), primary_key=True),
    sa.Column("stage", sa.String, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("lr", sa.Float, nullable=False),
    sa.Column("train_loss", sa.Float, nullable=False),
    sa.Column("train_top1", sa.Float, nullable=False),
    sa.Column("test_top1", sa.Float, nullable=False),
    sa.Column("test_top5", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("members", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

#: What teachers reached on the data sets that they taught.
teachers = sa.Table(
    "teachers",
    _tables,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("data", sa.String, primary_key=True),
    sa.Column("network", sa.String, nullable=False),
    sa.Column("top1", sa.Float, nullable=False),
    sa.Column("top5", sa.Float, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("claimed_top1", sa.Float),
)


class Store:
    """Results in a folder.

    Args:
        folder: made if it is missing and ``create`` is true.
        create: whether an absent store may be created.

    Raises:
        BadRequest: no store there, a newer schema, not a database, or a folder that cannot be written to.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.folder = folder
        path = folder / FILE_NAME
        if not create and not path.exists():
            raise BadRequest(
                f"there is no results store in {folder}: start with 'kdtable run', or name another --results"
            )
        if create:
            _make_writable(folder)
        self._engine = sa.create_engine(f"sqlite:///{path}")
        self._writer = self._engine.execution_options(writes=True)
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        try:
            self._open_schema(path)
        except sa.exc.DatabaseError as error:
            raise BadRequest(
                f"{path} cannot be read as a results store ({error.orig}): move it away or name another --results"
            ) from error

    def _open_schema(self, path: Path) -> None:
        with self._engine.connect() as db:  # an existing store is opened without waiting for whoever writes
            found = _schema_version(db, path)
        if found is None:
            with self._writer.begin() as db:
                found = _schema_version(db, path)
                if found is None:
                    _tables.create_all(db)
                    db.execute(_meta.insert().values(schema_version=SCHEMA_VERSION))
        if found is not None and found > SCHEMA_VERSION:
            raise BadRequest(
                f"the store in {self.folder} has schema {found}, newer than the {SCHEMA_VERSION} that this kdtable "
                "knows: update kdtable, or name another --results"
            )

    def close(self) -> None:
        """Release the database's connections."""
        self._engine.dispose()

    @contextmanager
    def training_lock(self) -> Iterator[None]:
        """Hold the right to train into this store; it ends with the process, however it ends.

        Raises:
            BadRequest: another process holds it.
        """
        with (self.folder / "training.lock").open("a") as lock:
            for attempt in range(LOCK_ATTEMPTS):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if attempt == LOCK_ATTEMPTS - 1:
                        raise BadRequest(
                            f"another kdtable is training into {self.folder}: wait for it, or name another --results"
                        ) from error
                    time.sleep(LOCK_PAUSE)
            yield

    def in_training(self) -> bool:
        """Whether a live process holds the right to train into this store."""
        path = self.folder / "training.lock"
        if not path.exists():
            return False
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def run_folder(self, run_id: str) -> Path:
        """Where the files of a run lie."""
        return self.folder / "runs" / run_id

    # --- what is known ---------------------------------------------------------------------------------------

    def statuses(self, ids: Iterable[str]) -> dict[str, str]:
        """Status of each of ``ids`` that the store knows."""
        wanted = set(ids)
        with self._engine.connect() as db:
            rows = db.execute(sa.select(runs.c.id, runs.c.status)).all()
        return {run_id: status for run_id, status in rows if run_id in wanted}

    def all_runs(self) -> list[dict[str, Any]]:
        """Every run as a mapping of its columns, oldest first."""
        with self._engine.connect() as db:
            return [dict(row) for row in db.execute(sa.select(runs).order_by(runs.c.key)).mappings()]

    def epochs_of(self, run_id: str) -> list[dict[str, Any]]:
        """The epochs of a run, in order of training."""
        query = (
            sa.select(epochs)
            .join(runs, runs.c.key == epochs.c.run)
            .where(runs.c.id == run_id)
            .order_by(epochs.c.stage == "main", epochs.c.stage, epochs.c.epoch)
        )
        with self._engine.connect() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def teacher_accuracies(self) -> list[dict[str, Any]]:
        """Every measured teacher as a mapping of its columns."""
        with self._engine.connect() as db:
            return [dict(row) for row in db.execute(sa.select(teachers)).mappings()]

    # --- what changes ----------------------------------------------------------------------------------------

    def plan(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the runs that are not there yet."""
        with self._writer.begin() as db:
            known = set(db.execute(sa.select(runs.c.id)).scalars())
            new = [dict(row, created=now()) for row in rows if row["id"] not in known]
            if new:
                db.execute(runs.insert(), new)

    def start(self, run_ids: Iterable[str], origin: Mapping[str, Any]) -> None:
        """Mark runs as being trained by this process.

        ``origin`` (code, packages, device, numerics) is kept with each run; a run that is continued under another
        one lists both.
        """
        with self._writer.begin() as db:
            for run_id in run_ids:
                this = runs.c.id == run_id
                known = json.loads(db.execute(sa.select(runs.c.provenance).where(this)).scalar_one() or "[]")
                origins = known if known[-1:] == [origin] else [*known, origin]
                db.execute(
                    runs.update()
                    .where(this)
                    .values(
                        status="running",
                        reason=None,
                        finished=None,
                        provenance=json.dumps(origins),
                        started=sa.func.coalesce(runs.c.started, now()),
                    )
                )

    def record(self, run_id: str, history: Iterable[Mapping[str, Any]], *, done: bool) -> None:
        """Add the epochs of a run's history that the store lacks, in one transaction.

        The whole history is given, so that an epoch whose checkpoint was written but which never reached the store
        is repaired by the next call.
        """
        records = list(history)
        columns = [c.name for c in epochs.c if c.name != "run"]
        with self._writer.begin() as db:
            key = db.execute(sa.select(runs.c.key).where(runs.c.id == run_id)).scalar_one()
            known = db.execute(sa.select(epochs.c.stage, epochs.c.epoch).where(epochs.c.run == key)).all()
            seen = {(stage, epoch) for stage, epoch in known}
            missing = [r for r in records if (r["stage"], r["epoch"]) not in seen]
            if missing:
                db.execute(epochs.insert(), [{"run": key, **{c: r[c] for c in columns}} for r in missing])
            values = _summary(records)
            if done:
                values |= {"status": "done", "finished": now()}
            db.execute(runs.update().where(runs.c.key == key).values(**values))

    def restart(self, run_id: str) -> None:
        """Forget the epochs of a run that begins again from its first epoch, and where those came from."""
        with self._writer.begin() as db:
            query = sa.select(runs.c.key, runs.c.provenance).where(runs.c.id == run_id)
            key, origins = db.execute(query).one()
            latest = json.dumps(json.loads(origins or "[]")[-1:])
            db.execute(epochs.delete().where(epochs.c.run == key))
            cleared = {f"{name}_{key}": None for name in ("last", "best") for key in _SHOWN}
            db.execute(
                runs.update()
                .where(runs.c.key == key)
                .values(wall_seconds=0.0, terms=None, provenance=latest, **cleared)
            )

    def fail(self, run_id: str, reason: str) -> None:
        """Mark a run as failed, with its reason."""
        self._set(run_id, status="failed", reason=reason, finished=now())

    def release(self, run_ids: Iterable[str]) -> None:
        """Mark runs that were interrupted as planned again; their checkpoints stay."""
        with self._writer.begin() as db:
            unfinished = sa.and_(runs.c.id.in_(list(run_ids)), runs.c.status == "running")
            db.execute(runs.update().where(unfinished).values(status="planned"))

    def release_abandoned(self) -> None:
        """Mark runs left running by a process that died as planned. Only under the training lock."""
        with self._writer.begin() as db:
            db.execute(runs.update().where(runs.c.status == "running").values(status="planned"))

    def record_teacher(self, row: Mapping[str, Any]) -> None:
        """Keep a teacher's accuracy on a data set, replacing an earlier measurement."""
        with self._writer.begin() as db:
            db.execute(teachers.delete().where(teachers.c.sha256 == row["sha256"], teachers.c.data == row["data"]))
            db.execute(teachers.insert(), [dict(row)])

    def _set(self, run_id: str, **values: Any) -> None:
        with self._writer.begin() as db:
            db.execute(runs.update().where(runs.c.id == run_id).values(**values))


def _summary(records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run's own row says about its epochs; the best epoch is the first of the highest top-1."""
    values: dict[str, Any] = {"wall_seconds": sum(r["seconds"] for r in records)}
    main = [r for r in records if r["stage"] == "main"]
    if main:
        values["terms"] = json.dumps(main[-1]["terms"])
        for name, record in (("last", main[-1]), ("best", max(main, key=lambda r: float(r["test_top1"])))):
            values |= {f"{name}_{key}": record[column] for key, column in _SHOWN.items()}
    return values


def now() -> str:
    """The present moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadRequest(
            f"results folder {folder} cannot be written to ({error.strerror}): name another --results"
        ) from error


def _schema_version(db: sa.Connection, path: Path) -> int | None:
    """The version of the schema; ``None`` in an empty database, and in one whose making was cut short."""
    present = sa.inspect(db).get_table_names()
    if present and _meta.name not in present:
        raise BadRequest(f"{path} is the database of another program: name another --results")
    return db.execute(sa.select(_meta.c.schema_version)).scalar() if present else None


def _begin(db: sa.Connection) -> None:
    # A writer takes its lock at once: one that reads first and writes later fails if another wrote in between.
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("writes") else "BEGIN")


def _configure(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin in _begin, so that they hold table definitions too
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # With WAL, NORMAL loses no committed transaction when a process dies; a power cut may lose the last ones,
    # which the checkpoints then repair.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
