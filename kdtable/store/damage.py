"""Whether a database is damaged: what its structure and SQLite's errors say of that."""

import sqlite3
from typing import Final

import sqlalchemy as sa

from kdtable.errors import BadRequest
from kdtable.store.schema import meta, origins, protocols, runs, teachers, workers
from kdtable.store.seals import Damage

#: What SQLite says of a damaged file: a query of ours makes no sense to it, its structure is wrong, a value is far too
#: large or of a type that the column cannot have.
_CODES: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH)

#: What PostgreSQL says: undefined table, undefined column, data corrupted, index corrupted.
_STATES: Final = ("42P01", "42703", "XX001", "XX002")

#: Looked over whenever a store is opened. Epochs, which may be millions, have the checksums in their runs' rows.
_TABLES: Final = (meta, protocols, origins, workers, runs, teachers)


class Damaged(BadRequest):
    """A store whose content is not what was written into it."""

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


def look_over(db: sa.Connection, *, scanned: bool = False) -> None:
    """Check the structure of a SQLite store, but of its epochs: a lost page or row would else be missed by nobody.

    Args:
        db: a connection to it.
        scanned: whether no run will be looked up by an index. Then their indexes need not be compared with the rows
            one by one, which takes five times as long: that they lead to as many, of the same keys, shows that no row
            is lost, and what is in the rows has checksums.

    Raises:
        Damage: it is not whole.
    """
    for table in _TABLES:
        kind = "quick_check" if scanned and table is runs else "integrity_check"
        for (text,) in db.exec_driver_sql(f"PRAGMA {kind}({table.name})"):
            if text != "ok":
                raise Damage(" ".join(str(text).split()))
    if scanned:
        indexes = [f'INDEXED BY "{row[1]}"' for row in db.exec_driver_sql("PRAGMA index_list(runs)").all()]
        counted = "SELECT count(*), sum(key) FROM runs"
        found = {tuple(db.exec_driver_sql(f"{counted} {how}").one()) for how in ("NOT INDEXED", *indexes)}
        if len(found) > 1 or not indexes:
            raise Damage("its indexes of runs do not fit them")
