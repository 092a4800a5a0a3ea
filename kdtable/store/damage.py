"""Whether a database is damaged: what SQLite's and PostgreSQL's errors say of that."""

import sqlite3
from typing import Final

import sqlalchemy as sa

from kdtable.errors import BadRequest

#: What SQLite says of a damaged file: a query of ours makes no sense to it, its structure is wrong, a value is far too
#: large or of a type that the column cannot have.
_CODES: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH)

#: What PostgreSQL says: undefined table, undefined column, data corrupted, index corrupted.
_STATES: Final = ("42P01", "42703", "XX001", "XX002")


class Damage(Exception):
    """Something in a store cannot be read. Where it is met, the message becomes a `BadRequest`."""


class Damaged(BadRequest):
    """A store that cannot be read as what was written into it."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} is damaged ({what}): 'kdtable store check' tells more, restore it from a copy")
        self.what = what


def is_damage(error: BaseException) -> bool:
    """Whether an error in reading says that the database's content is damaged."""
    if isinstance(error, Damage | UnicodeError):
        return True
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if getattr(cause, "sqlstate", None) in _STATES:
        return True
    # What has no code is Python's own complaint: a text that is no UTF-8.
    return isinstance(cause, sqlite3.DatabaseError) and (
        not hasattr(cause, "sqlite_errorcode") or cause.sqlite_errorcode & 0xFF in _CODES
    )
