"""Database URLs: parse them, and hide their passwords."""

import re
from importlib.util import find_spec

import sqlalchemy as sa

from kdtable.errors import BadRequest

_DRIVERS = ("postgresql", "postgresql+psycopg")


def is_url(text: str) -> bool:
    """Whether ``text`` is the URL of a database server rather than a folder."""
    return "://" in text


def parse(text: str) -> sa.URL:
    """Parse the URL of a PostgreSQL database.

    Raises:
        BadRequest: not such a URL, an unescaped ``@`` in its password, or the driver is not installed.
    """
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise BadRequest("--store takes postgresql+psycopg://USER@HOST/DATABASE, and was given no such URL") from error
    if "@" in (url.host or "") or "@" in (url.database or ""):
        raise BadRequest("the password in --store has an '@' in it: write it as %40")
    if url.drivername not in _DRIVERS:
        raise BadRequest(
            f"--store takes postgresql+psycopg://USER@HOST/DATABASE, not a {url.drivername} URL; "
            "for SQLite leave it out, and name the folder with --results"
        )
    if find_spec("psycopg") is None:
        raise BadRequest("a store on PostgreSQL needs its driver: pip install 'kdtable[postgres]'")
    return url.set(drivername="postgresql+psycopg")


def without_password(text: str) -> str:
    """Replace the passwords of URLs in ``text`` by ``***``."""
    text = re.sub(r"(://[^:/@\s]*:)\S*@", r"\1***@", text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)
