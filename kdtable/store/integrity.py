"""Integrity of a database: which errors of SQLite and PostgreSQL mean damage."""

import sqlite3
from typing import Final

import sqlalchemy as sa

from kdtable.errors import BadRequest

#: SQLite's codes for a damaged file: a query that does not fit the tables, a wrong structure, a value that is far too
#: large, a value of the wrong type.
_CODES: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH)

#: PostgreSQL's codes: undefined table, undefined column, data corrupted, index corrupted.
_STATES: Final = ("42P01", "42703", "XX001", "XX002")


class Damage(Exception):
    """A value in a store cannot be read. `Database` turns it into a :class:`Damaged` that names the store."""


class Damaged(BadRequest):
    """A store whose content is damaged."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} is damaged ({what}): 'kdtable store check' tells more, restore it from a copy")
        self.what = what


def is_damage(error: BaseException) -> bool:
    """Whether a read error means that the database's content is damaged."""
    if isinstance(error, Damage | UnicodeError):
        return True
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if getattr(cause, "sqlstate", None) in _STATES:
        return True
    # Errors without a code are Python's own: text that is not UTF-8.
    return isinstance(cause, sqlite3.DatabaseError) and (
        not hasattr(cause, "sqlite_errorcode") or cause.sqlite_errorcode & 0xFF in _CODES
    )
