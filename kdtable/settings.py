"""``kdtable.toml``: the user's settings, of the working folder and of the user's configuration folder."""

import os
import tomllib
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Final

from kdtable.errors import BadRequest, unknown

FILE: Final = "kdtable.toml"

#: The tables that a file may have.
TABLES: Final = ("cluster", "plugins")


def files(folder: Path = Path()) -> list[Path]:
    """The files that are read, the user's first: what the working folder's says counts more."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kdtable" / FILE
    return [file for file in (own, folder / FILE) if file.is_file()]


def tables(name: str, folder: Path = Path()) -> dict[Path, dict[str, Any]]:
    """The table ``[name]`` of each file, by file; those that lack it are left out.

    Raises:
        BadRequest: a file cannot be read, is no TOML, or has a table that is not one of :data:`TABLES`.
    """
    read = {file: _read(file) for file in files(folder)}
    return {file: content[name] for file, content in read.items() if name in content}


def table(name: str) -> dict[str, Any]:
    """The table ``[name]`` of all files as one; empty if none has it.

    Raises:
        BadRequest: see :func:`tables`.
    """
    return reduce(merged, tables(name).values(), {})


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one: values of ``above`` win, tables in tables are merged likewise."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def _read(file: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise BadRequest(f"{file} cannot be read ({error}): correct it, or move it away") from error
    for name, value in content.items():
        if name not in TABLES:
            raise BadRequest(f"{file}: {unknown('table', name, TABLES)}")
        if not isinstance(value, dict):
            raise BadRequest(f"{file}: {name} is a table: write [{name}]")
    return content
