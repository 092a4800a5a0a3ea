"""Opening the database of a store, and its transactions: SQLite in the results folder, or PostgreSQL by URL."""

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from kdtable.errors import BadRequest, Trouble
from kdtable.store import address
from kdtable.store.damage import Damaged, is_damage, look_over
from kdtable.store.migration import migrate
from kdtable.store.schema import SCHEMA_VERSION, create, meta
from kdtable.store.seals import Damage
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
        with self._told("read"), self._reader.connect() as db:
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
        except Damage as error:
            raise Damaged(self.name, str(error)) from error
        except (sa.exc.DBAPIError, UnicodeError) as error:
            if is_damage(error):
                raise Damaged(self.name, first_line(error)) from error
            if isinstance(error, (*_OURS, UnicodeError)):
                raise
            kind = Trouble if verb == "written" else BadRequest
            raise kind(f"{self.name} cannot be {verb} ({first_line(error)}): {self.advice}") from error


def open_folder(folder: Path, *, create: bool, unchecked: bool = False, scanned: bool = False) -> Database:
    """The SQLite database in a results folder: to be changed, and made if need be, or only to be read.

    Its structure is looked over, unless it is only read, and ``unchecked``; less closely if ``scanned``, see `Store`.

    Raises:
        NoStore: there is none, and ``create`` is false.
        Damaged: its structure is not whole; nothing was written.
        BadRequest: a newer schema, not a database, or a folder that cannot be written to.
    """
    path = folder / FILE_NAME
    if not create:
        if not path.exists():
            raise _no_store(str(folder), "--results")
        return _reader(path, None if unchecked else partial(look_over, scanned=scanned))
    make_writable(folder)
    if path.exists() and not path.stat().st_size and any(folder.glob("runs/*/")):
        raise BadRequest(f"{path} is empty although {folder / 'runs'} holds results: restore it, or move it away")
    # No text of a URL: in that, a '?' begins options, and a '%' stands for another character.
    database = _sqlite(sa.create_engine(sa.URL.create("sqlite", database=str(path))), path)
    if path.exists() and path.stat().st_size:
        _looked_into(path, look_over).close()  # before anything is written into a damaged file
    sa.event.listen(database.engine, "connect", for_writing)
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
    except Damage as error:
        raise Damaged(f"the store {shown}", str(error)) from error
    except sa.exc.DBAPIError as error:
        reason = address.without_password(first_line(error))
        raise BadRequest(f"the store {shown} cannot be reached ({reason}): check --store, and its server") from error
    if found is None and not create:
        raise _no_store(shown, "--store")
    if found is None:
        _create(database, shown)
    elif found < SCHEMA_VERSION and not create:
        raise BadRequest(
            f"the store {shown} has schema {found}, of an older kdtable: the next 'kdtable run' into it brings it to "
            f"today's {SCHEMA_VERSION}, call that first"
        )
    elif found < SCHEMA_VERSION:
        with database.write(alone=True) as db:
            if (_schema_version(db, shown) or 0) < SCHEMA_VERSION:
                migrate(db, found)
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
                migrate(db, found)


def _create(database: Database, shown: str) -> None:
    with database.write(alone=True) as db:
        if _schema_version(db, shown) is None:
            create(db)


def _reader(path: Path, look: Callable[[sa.Connection], None] | None) -> Database:
    """A store that is only read, and of an older schema a copy in memory."""
    database = _looked_into(path, look)
    with _as_store(path):
        with database.engine.connect() as db:
            found = _schema_version(db, str(path))
        if found is None:
            raise _no_store(str(path.parent), "--results")
        if found == SCHEMA_VERSION:
            return database
        database.close()
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        with closing(connect_to_read(path)) as original:
            original.backup(copy)
        copied = _sqlite(sa.create_engine("sqlite://", creator=lambda: copy, poolclass=StaticPool), path)
        with copied.write() as db:
            migrate(db, found)
        return copied


def _looked_into(path: Path, look: Callable[[sa.Connection], None] | None) -> Database:
    """A SQLite database to be read, whose structure was looked over if it has today's schema."""
    database = _sqlite(sa.create_engine("sqlite://", creator=lambda: connect_to_read(path)), path)
    with _as_store(path), database.engine.connect() as db:
        if look and _schema_version(db, str(path)) == SCHEMA_VERSION:
            look(db)
    return database


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


def _schema_version(db: sa.Connection, shown: str) -> int | None:
    """The version of the schema; ``None`` in an empty database, and in one whose making was cut short.

    Raises:
        Damage: it says none.
        BadRequest: it is newer than this program, or no store's.
    """
    present = sa.inspect(db).get_table_names()
    if present and meta.name not in present:
        raise BadRequest(f"{shown} is the database of another program: name another {_option(db)}")
    if not present:
        if db.dialect.name == "sqlite" and db.exec_driver_sql("PRAGMA page_count").scalar_one() > 1:
            raise Damage("its tables are lost")
        return None
    versions = db.execute(sa.select(meta.c.schema_version)).scalars().all()
    if len(versions) != 1 or not isinstance(versions[0], int) or versions[0] < 1:
        raise Damage(f"its schema version is {', '.join(map(str, versions)) or 'lost'}")
    found: int = versions[0]
    if found > SCHEMA_VERSION:
        raise BadRequest(
            f"the store {shown} has schema {found}, newer than the {SCHEMA_VERSION} that this kdtable knows: "
            f"update kdtable, or name another {_option(db)}"
        )
    return found


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
