"""Connections to SQLite, and what its errors mean."""

import os
import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

#: What SQLite says of a disk or a folder: no access, read-only, an error in reading or writing, full, cannot be opened.
_TROUBLES: Final = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)


def connect_to_read(path: Path) -> sqlite3.Connection:
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
        if not is_trouble(error) or (log.exists() and log.stat().st_size):
            raise
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, check_same_thread=False)
    return connection


def is_trouble(error: BaseException) -> bool:
    """Whether it is the disk or the folder that SQLite cannot use, not what is in the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _TROUBLES


def first_line(error: Exception) -> str:
    """The first line of what a database said."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def begin(db: sa.Connection) -> None:
    """Begin a transaction as its connection's options say."""
    # A writer takes its lock at once: one that reads first and writes later fails if another wrote in between.
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("writes") else "BEGIN")


def by_hand(connection: Any, _record: object) -> None:
    """Leave transactions to :func:`begin`, so that they hold table definitions too."""
    connection.isolation_level = None


def for_writing(connection: Any, _record: object) -> None:
    """Prepare a new connection that changes the store."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")  # first: the others wait for a lock too
    cursor.execute("PRAGMA journal_mode=WAL")
    # With WAL, NORMAL loses no committed transaction when a process dies; a power cut may lose the last ones,
    # which the checkpoints then repair.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
