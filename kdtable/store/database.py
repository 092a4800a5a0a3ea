"""Open a store's database (SQLite in the results folder, or PostgreSQL by URL), and its transactions."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import sqlalchemy as sa

from kdtable.errors import BadRequest, Trouble
from kdtable.store import address
from kdtable.store.integrity import Damage, Damaged, is_damage
from kdtable.store.patience import Patience
from kdtable.store.schema import SCHEMA_VERSION, SHAPE, create, meta
from kdtable.store.sqlite import begin, connect_to_read, first_line, for_writing, is_trouble, manual_transactions

FILE_NAME: Final = "kdtable.sqlite"

#: Seconds that a transaction on a server may be idle. Ours last milliseconds.
IDLE: Final = 30

#: PostgreSQL advisory lock of exclusive writers; an arbitrary number.
_ALONE: Final = 6_014_072_217

#: Bugs of ours, not failures of the database.
_BUGS = (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError)


class NoStore(BadRequest):
    """There is no results store to read."""


class Lost(Trouble):
    """The connection to the server broke within a transaction, of which nobody knows whether it was committed."""


class Database:
    """A database of results.

    Attributes:
        name: as messages show it, without a password.
        advice: what to do when it cannot be used, for messages.
        engine: its connection pool.
        patience: with a server that is away when a transaction begins.
    """

    def __init__(self, engine: sa.Engine, name: str, advice: str, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.engine = engine
        self.name = name
        self.advice = advice
        self._writer = engine.execution_options(writes=True)
        # A transaction reads one snapshot. SQLite does so by default.
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ") if self.is_server else engine

    @property
    def is_server(self) -> bool:
        """Whether the database is on a server."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read-only transaction.

        Raises:
            Damaged: the database is damaged.
            Lost: the connection broke.
            BadRequest: it cannot be reached.
        """
        with self.explained("read"), self.patience.keep(self._reader.connect, self.name) as db:
            yield db

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[sa.Connection]:
        """Open a transaction that commits at its end and rolls back on an exception.

        Args:
            alone: exclude other transactions opened with ``alone``. SQLite never has two writers anyway.

        Raises:
            Damaged: the database is damaged.
            Lost: the connection broke.
            Trouble: it is full, locked for long, or cannot be reached.
        """
        with self.explained("written"), self.patience.keep(self._writer.connect, self.name) as db, db.begin():
            if alone and self.is_server:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_ALONE)))
            yield db

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()

    @contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """Turn database errors inside the block into one-sentence messages.

        Args:
            verb: what the block does with the database: "read" or "written".
        """
        try:
            yield
        except Damage as error:
            raise Damaged(self.name, str(error)) from error
        except (sa.exc.DBAPIError, UnicodeError) as error:
            if is_damage(error):
                raise Damaged(self.name, first_line(error)) from error
            if isinstance(error, (*_BUGS, UnicodeError)):
                raise
            lost = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
            kind = Lost if lost else Trouble if verb == "written" else BadRequest
            raise kind(f"{self.name} cannot be {verb} ({first_line(error)}): {self.advice}") from error


def open_folder(folder: Path, *, create: bool) -> Database:
    """Open the SQLite database in a results folder: read-only, or with ``create`` for writing and made if missing.

    Raises:
        NoStore: there is none, and ``create`` is false.
        Damaged: its structure cannot be read. Nothing was written.
        BadRequest: a store of another version, not a database, or a folder that cannot be written to.
    """
    path = folder / FILE_NAME
    if not create:
        if not path.exists():
            raise _no_store(str(folder), "--results")
        database, found = _reader(path)
        if not found:
            raise _no_store(str(folder), "--results")
        return database
    make_writable(folder)
    if path.exists() and not path.stat().st_size and any(folder.glob("runs/*/")):
        raise BadRequest(f"{path} is empty although {folder / 'runs'} holds results: restore it, or move it away")
    found = False
    if path.exists() and path.stat().st_size:  # never write to a damaged file or another program's
        existing, found = _reader(path)
        existing.close()
    # Not a URL string, in which '?' and '%' in the path have a meaning of their own.
    database = _sqlite(sa.create_engine(sa.URL.create("sqlite", database=str(path))), path)
    sa.event.listen(database.engine, "connect", for_writing)
    if not found:
        with _opening(path):
            _create(database, str(path))
    return database


def open_server(text: str, *, create: bool, patience: Patience | None = None) -> Database:
    """Open the PostgreSQL database at a URL. With ``create``, its store is made if missing.

    Raises:
        NoStore: the database holds no store, and ``create`` is false.
        BadRequest: no such URL, no server, or a store of another version.
    """
    url = address.parse(text)
    shown = address.without_password(url.set(query={}).render_as_string())
    options = {"connect_timeout": 10, "application_name": "kdtable"}
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=options)
    sa.event.listen(engine, "connect", _set_timeouts)
    database = Database(
        engine, f"the store {shown}", "see that its server runs, and go on with the same command", patience
    )
    try:
        with database.patience.keep(engine.connect, database.name) as db:
            found = _has_store(db, shown)
    except Damage as error:
        raise Damaged(f"the store {shown}", str(error)) from error
    except sa.exc.DBAPIError as error:
        reason = address.without_password(first_line(error))
        raise BadRequest(f"the store {shown} cannot be reached ({reason}): check --store, and its server") from error
    if not found and not create:
        raise _no_store(shown, "--store")
    if not found:
        _create(database, shown)
    return database


def _create(database: Database, shown: str) -> None:
    with database.write(alone=True) as db:
        if not _has_store(db, shown):
            create(db)


def _reader(path: Path) -> tuple[Database, bool]:
    """A read-only SQLite database, and whether it holds a store."""
    database = _sqlite(sa.create_engine("sqlite://", creator=lambda: connect_to_read(path)), path)
    with _opening(path), database.engine.connect() as db:
        return database, _has_store(db, str(path))


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except Damage as error:
        raise Damaged(f"the store {path}", str(error)) from error
    except (sa.exc.DatabaseError, sqlite3.DatabaseError, UnicodeError) as error:
        if is_damage(error):
            raise Damaged(f"the store {path}", first_line(error)) from error
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if cause is not None and is_trouble(cause):
            raise BadRequest(f"the store {path} cannot be used ({cause}): see to that, and call again") from error
        raise BadRequest(
            f"{path} cannot be read as a results store ({first_line(error)}): move it away or name another --results"
        ) from error


def _sqlite(engine: sa.Engine, path: Path) -> Database:
    sa.event.listen(engine, "connect", manual_transactions)
    sa.event.listen(engine, "begin", begin)
    return Database(engine, f"the store {path}", "see to that, and go on with the same command")


def make_writable(folder: Path) -> None:
    """Make a results folder if it is missing.

    Raises:
        BadRequest: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BadRequest(
            f"results folder {folder} cannot be written to ({error.strerror}): name another --results"
        ) from error


def _has_store(db: sa.Connection, shown: str) -> bool:
    """Whether a database holds a store; false if it is empty, or if creating it was interrupted.

    Raises:
        Damage: its tables are lost.
        BadRequest: it belongs to another program, or to another version.
    """
    found = sa.inspect(db)
    present = found.get_table_names()
    if present and meta.name not in present:
        raise BadRequest(f"{shown} is the database of another program: name another {_option(db)}")
    if not present:
        if db.dialect.name == "sqlite" and db.exec_driver_sql("PRAGMA page_count").scalar_one() > 1:
            raise Damage("its tables are lost")
        return False
    columns = [column["name"] for column in found.get_columns(meta.name)]
    own = columns == [column.name for column in meta.c]
    if not own or [tuple(row) for row in db.execute(sa.select(meta))] != [(SCHEMA_VERSION, SHAPE)]:
        raise BadRequest(
            f"the store {shown} is of another version of kdtable: name another {_option(db)}, or move it away"
        )
    return True


def _no_store(shown: str, option: str) -> NoStore:
    return NoStore(f"there is no results store in {shown}: start with 'kdtable run', or name another {option}")


def _option(db: sa.Connection) -> str:
    return "--results" if db.dialect.name == "sqlite" else "--store"


def _set_timeouts(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        # A process suspended inside a transaction would block all others. The server ends its session and rolls
        # back its transaction.
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE}s'")
        cursor.execute(f"SET lock_timeout = '{2 * IDLE}s'")
    connection.commit()
