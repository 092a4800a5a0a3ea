"""Opening the database of a store, and its transactions: SQLite in the results folder, or PostgreSQL by URL."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import sqlalchemy as sa

from kdtable.errors import BadRequest, Trouble
from kdtable.store import address
from kdtable.store.damage import Damage, Damaged, is_damage
from kdtable.store.schema import SCHEMA_VERSION, SHAPE, create, meta
from kdtable.store.sqlite import begin, by_hand, connect_to_read, first_line, for_writing, is_trouble

FILE_NAME: Final = "kdtable.sqlite"

#: Seconds that a transaction on a server may be idle; ours last for thousandths of one.
IDLE: Final = 30

#: Held by whoever must change a PostgreSQL store alone; the number means nothing.
_ALONE: Final = 6_014_072_217

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
        # What one transaction reads is of one moment: SQLite needs no telling.
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ") if self.is_server else engine

    @property
    def is_server(self) -> bool:
        """Whether it is a server's."""
        return self.engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that changes nothing.

        Raises:
            Damaged: the database is.
            BadRequest: it cannot be reached.
        """
        with self.told("read"), self._reader.connect() as db:
            yield db

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[sa.Connection]:
        """A transaction that is committed at its end, and undone by an exception.

        Args:
            alone: no other such transaction is at work; on SQLite no other writer ever is.

        Raises:
            Damaged: the database is.
            Trouble: it is full, locked for long, or cannot be reached.
        """
        with self.told("written"), self._writer.begin() as db:
            if alone and self.is_server:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(_ALONE)))
            yield db

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()

    @contextmanager
    def told(self, verb: str) -> Iterator[None]:
        """Say in one sentence what is wrong with the database, when it is ``verb`` inside the block."""
        try:
            yield
        except Damage as error:
            raise Damaged(self.name, str(error)) from error
        except (sa.exc.DBAPIError, UnicodeError) as error:
            if is_damage(error):
                raise Damaged(self.name, first_line(error)) from error
            if isinstance(error, (*_OURS, UnicodeError)):
                raise
            kind = Trouble if verb == "written" else BadRequest
            raise kind(f"{self.name} cannot be {verb} ({first_line(error)}): {self.advice}") from error


def open_folder(folder: Path, *, create: bool) -> Database:
    """The SQLite database in a results folder: to be changed, and made if need be, or only to be read.

    Raises:
        NoStore: there is none, and ``create`` is false.
        Damaged: its structure cannot be read; nothing was written.
        BadRequest: another version's store, not a database, or a folder that cannot be written to.
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
    if path.exists() and path.stat().st_size:  # nothing is written into what is damaged, or another program's
        looked_at, found = _reader(path)
        looked_at.close()
    # No text of a URL: in that, a '?' begins options, and a '%' stands for another character.
    database = _sqlite(sa.create_engine(sa.URL.create("sqlite", database=str(path))), path)
    sa.event.listen(database.engine, "connect", for_writing)
    if not found:
        with _as_store(path):
            _create(database, str(path))
    return database


def open_server(text: str, *, create: bool) -> Database:
    """The PostgreSQL database at a URL.

    Raises:
        NoStore: the database has none, and ``create`` is false.
        BadRequest: no such URL, no server, or another version's store.
    """
    url = address.parse(text)
    shown = address.without_password(url.set(query={}).render_as_string())
    options = {"connect_timeout": 10, "application_name": "kdtable"}
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=options)
    sa.event.listen(engine, "connect", _among_others)
    database = Database(engine, f"the store {shown}", "see that its server runs, and go on with the same command")
    try:
        with engine.connect() as db:
            found = _is_there(db, shown)
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
        if not _is_there(db, shown):
            create(db)


def _reader(path: Path) -> tuple[Database, bool]:
    """A SQLite database to be read, and whether there is a store in it."""
    database = _sqlite(sa.create_engine("sqlite://", creator=lambda: connect_to_read(path)), path)
    with _as_store(path), database.engine.connect() as db:
        return database, _is_there(db, str(path))


@contextmanager
def _as_store(path: Path) -> Iterator[None]:
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
    sa.event.listen(engine, "connect", by_hand)
    sa.event.listen(engine, "begin", begin)
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


def _is_there(db: sa.Connection, shown: str) -> bool:
    """Whether a database holds a store; an empty one does not, nor one whose making was cut short.

    Raises:
        Damage: it has lost its tables.
        BadRequest: it is no store's, or one of another version.
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


def _among_others(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        # A process that is suspended amid a transaction would keep all others waiting: its session is ended, and
        # with it what it had not committed.
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE}s'")
        cursor.execute(f"SET lock_timeout = '{2 * IDLE}s'")
    connection.commit()
