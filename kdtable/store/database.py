"""Opening the database of a store, and its transactions: SQLite in the results folder, or PostgreSQL by URL."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from kdtable.errors import BadRequest, Trouble
from kdtable.store import address
from kdtable.store.schema import SCHEMA_VERSION, create, meta, migrate

FILE_NAME: Final = "kdtable.sqlite"

#: Seconds that a transaction on a server may be idle; ours last for thousandths of one.
IDLE: Final = 30

#: Held by whoever must change a PostgreSQL store alone; the number means nothing.
_ALONE: Final = 6_014_072_217

#: What SQLite says of a disk or a folder: no access, read-only, an error in reading or writing, full, cannot be opened.
_TROUBLES: Final = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)

#: Mistakes of ours, not troubles of the database.
_OURS = (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError)


class NoStore(BadRequest):
    """There is no results store where one was to be read."""


class Database:
    """A database of results.

    Attributes:
        name: what messages call it; never with a password.
        advice: what to do when it cannot be used.
        engine: its connections.
    """

    def __init__(self, engine: sa.Engine, name: str, advice: str) -> None:
        self.engine = engine
        self.name = name
        self.advice = advice
        self._writer = engine.execution_options(writes=True)

    @property
    def is_server(self) -> bool:
        """Whether it is a server's."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that changes nothing.

        Raises:
            BadRequest: the database is damaged, or cannot be reached.
        """
        with self._told("read"), self.engine.connect() as db:
            yield db

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[sa.Connection]:
        """A transaction that is committed at its end, and undone by an exception.

        Args:
            alone: no other such transaction is at work; on SQLite no other writer ever is.

        Raises:
            Trouble: the database is damaged, full, locked for long, or cannot be reached.
        """
        with self._told("written"), self._writer.begin() as db:
            if alone and self.is_server:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_ALONE)))
            yield db

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()

    @contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        try:
            yield
        except _OURS:
            raise
        except sa.exc.DBAPIError as error:
            kind = Trouble if verb == "written" else BadRequest
            raise kind(f"{self.name} cannot be {verb} ({_first_line(error)}): {self.advice}") from error


def open_folder(folder: Path, *, create: bool) -> Database:
    """The SQLite database in a results folder: to be changed, and made if need be, or only to be read.

    Raises:
        NoStore: there is none, and ``create`` is false.
        BadRequest: a newer schema, not a database, or a folder that cannot be written to.
    """
    path = folder / FILE_NAME
    if not create:
        if not path.exists():
            raise _no_store(str(folder), "--results")
        return _reader(path)
    make_writable(folder)
    if path.exists() and not path.stat().st_size and any(folder.glob("runs/*/")):
        raise BadRequest(f"{path} is empty although {folder / 'runs'} holds results: restore it, or move it away")
    database = _sqlite(sa.create_engine(f"sqlite:///{path}"), path)
    sa.event.listen(database.engine, "connect", _for_writing)
    with _as_store(path):
        _prepare(database, path)
    return database


def open_server(text: str, *, create: bool) -> Database:
    """The PostgreSQL database at a URL.

    Raises:
        NoStore: the database has none, and ``create`` is false.
        BadRequest: no such URL, no server, or a newer schema.
    """
    url = address.parse(text)
    shown = address.without_password(url.set(query={}).render_as_string())
    options = {"connect_timeout": 10, "application_name": "kdtable"}
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=options)
    sa.event.listen(engine, "connect", _among_others)
    database = Database(engine, f"the store {shown}", "see that its server runs, and go on with the same command")
    try:
        with engine.connect() as db:
            found = _schema_version(db, shown)
    except sa.exc.DBAPIError as error:
        reason = address.without_password(_first_line(error))
        raise BadRequest(f"the store {shown} cannot be reached ({reason}): check --store, and its server") from error
    if found is None and not create:
        raise _no_store(shown, "--store")
    if found is None:
        _create(database, shown)
    return database


def _prepare(database: Database, path: Path) -> None:
    """Make or migrate a SQLite store that is to be changed."""
    with database.engine.connect() as db:  # today's schema is found without waiting for whoever writes
        found = _schema_version(db, str(path))
    if found is None:
        _create(database, str(path))
    elif found < SCHEMA_VERSION:
        with _not_in_training(path.parent), database.engine.execution_options(writes=True).begin() as db:
            if (_schema_version(db, str(path)) or 0) < SCHEMA_VERSION:
                migrate(db)


def _create(database: Database, shown: str) -> None:
    with database.write(alone=True) as db:
        if _schema_version(db, shown) is None:
            create(db)


def _reader(path: Path) -> Database:
    """A store that is only read, and of an older schema a copy in memory."""
    with _as_store(path):
        database = _sqlite(sa.create_engine("sqlite://", creator=lambda: _connect_to_read(path)), path)
        with database.engine.connect() as db:
            found = _schema_version(db, str(path))
        if found is None:
            raise _no_store(str(path.parent), "--results")
        if found == SCHEMA_VERSION:
            return database
        database.close()
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        with _closed(_connect_to_read(path)) as original:
            original.backup(copy)
        copied = _sqlite(sa.create_engine("sqlite://", creator=lambda: copy, poolclass=StaticPool), path)
        with copied.write() as db:
            migrate(db)
        return copied


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, wherever the file lies."""
    uri = path.absolute().as_uri()
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    connection = sqlite3.connect(f"{uri}?mode={mode}", uri=True, timeout=30, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError as error:
        # SQLite wants to make its files for readers beside a store that nobody has open. Where it cannot, as in a
        # read-only folder or on a full disk, and no transaction waits in a log of its own, the file itself is whole
        # and can be read as it is.
        connection.close()
        log = path.with_name(f"{path.name}-wal")
        if not _is_trouble(error) or (log.exists() and log.stat().st_size):
            raise
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, check_same_thread=False)
    return connection


def _is_trouble(error: BaseException) -> bool:
    """Whether it is the disk or the folder that SQLite cannot use, not what is in the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _TROUBLES


@contextmanager
def _closed(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _as_store(path: Path) -> Iterator[None]:
    try:
        yield
    except (sa.exc.DatabaseError, sqlite3.DatabaseError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if cause is not None and _is_trouble(cause):
            raise BadRequest(f"the store {path} cannot be used ({cause}): see to that, and call again") from error
        raise BadRequest(
            f"{path} cannot be read as a results store ({_first_line(error)}): move it away or name another --results"
        ) from error


@contextmanager
def _not_in_training(folder: Path) -> Iterator[None]:
    """Keep kdtable of the time of schema 1 from training into the store, which it locked by a file."""
    path = folder / "training.lock"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadRequest(f"an older kdtable is training into {folder}: wait for it, then try again") from error
        yield
        path.unlink(missing_ok=True)


def _sqlite(engine: sa.Engine, path: Path) -> Database:
    sa.event.listen(engine, "connect", _by_hand)
    sa.event.listen(engine, "begin", _begin)
    return Database(engine, f"the store {path}", "see to that, and go on with the same command")


def make_writable(folder: Path) -> None:
    """Make a folder for results, unless it is there.

    Raises:
        BadRequest: nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadRequest(
            f"results folder {folder} cannot be written to ({error.strerror}): name another --results"
        ) from error


def _schema_version(db: sa.Connection, shown: str) -> int | None:
    """The version of the schema; ``None`` in an empty database, and in one whose making was cut short.

    Raises:
        BadRequest: it is newer than this program, or no store's.
    """
    present = sa.inspect(db).get_table_names()
    if present and meta.name not in present:
        raise BadRequest(f"{shown} is the database of another program: name another {_option(db)}")
    if not present:
        return None
    found = db.execute(sa.select(meta.c.schema_version)).scalar()
    if found is not None and found > SCHEMA_VERSION:
        raise BadRequest(
            f"the store {shown} has schema {found}, newer than the {SCHEMA_VERSION} that this kdtable knows: "
            f"update kdtable, or name another {_option(db)}"
        )
    return found


def _no_store(shown: str, option: str) -> NoStore:
    return NoStore(f"there is no results store in {shown}: start with 'kdtable run', or name another {option}")


def _option(db: sa.Connection) -> str:
    return "--results" if db.dialect.name == "sqlite" else "--store"


def _first_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _begin(db: sa.Connection) -> None:
    # A writer takes its lock at once: one that reads first and writes later fails if another wrote in between.
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("writes") else "BEGIN")


def _by_hand(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin in _begin, so that they hold table definitions too


def _among_others(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        # A process that is suspended amid a transaction would keep all others waiting: its session is ended, and
        # with it what it had not committed.
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE}s'")
        cursor.execute(f"SET lock_timeout = '{2 * IDLE}s'")
    connection.commit()


def _for_writing(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")  # first: the others wait for a lock too
    cursor.execute("PRAGMA journal_mode=WAL")
    # With WAL, NORMAL loses no committed transaction when a process dies; a power cut may lose the last ones,
    # which the checkpoints then repair.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
