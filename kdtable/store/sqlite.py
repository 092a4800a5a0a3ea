"""SQLite: connections, and the meaning of its errors."""

import os
import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

#: SQLite's codes for a disk or folder: no access, read-only, I/O error, full, cannot be opened.
_TROUBLES: Final = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a read-only connection, on read-only folders and full disks too."""
    uri = path.absolute().as_uri()
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    connection = sqlite3.connect(f"{uri}?mode={mode}", uri=True, timeout=30, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError as error:
        # SQLite needs to create files beside a database that nobody has open. If it cannot (read-only folder, full
        # disk) and the write-ahead log is empty, the database file itself is complete and is read as immutable.
        connection.close()
        log = path.with_name(f"{path.name}-wal")
        if not is_trouble(error) or (log.exists() and log.stat().st_size):
            raise
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, check_same_thread=False)
    return connection


def is_trouble(error: BaseException) -> bool:
    """Whether SQLite failed because of the disk or the folder, not the content of the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _TROUBLES


def first_line(error: Exception) -> str:
    """The first line of a database error's message."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def begin(db: sa.Connection) -> None:
    """Begin a transaction, for writing if the connection's options say so."""
    # A writer locks at once: if it read first, a write by another in between would make it fail.
    db.exec_driver_sql("BEGIN IMMEDIATE" if db.get_execution_options().get("writes") else "BEGIN")


def manual_transactions(connection: Any, _record: object) -> None:
    """Leave transactions to :func:`begin`, so that they include table definitions."""
    connection.isolation_level = None


def for_writing(connection: Any, _record: object) -> None:
    """Prepare a new connection for writing."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")  # first: the following statements may wait for a lock
    cursor.execute("PRAGMA journal_mode=WAL")
    # With WAL, NORMAL loses no committed transaction when a process dies. A power cut may lose the last ones; the
    # checkpoints repair them.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
