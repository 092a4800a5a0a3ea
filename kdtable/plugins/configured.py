"""``kdtable.toml``: plug-ins that every command loads."""

from pathlib import Path
from typing import Any

from kdtable.errors import BadRequest
from kdtable.settings import tables


def configured(folder: Path) -> list[Path]:
    """The plug-ins that the files ``kdtable.toml`` of the user and of a folder name, relative to each file.

        [plugins]
        files = ["my_dkd.py"]

    Raises:
        BadRequest: a file cannot be read, or says something else.
    """
    return [path for file, section in tables("plugins", folder).items() for path in _named(file, section)]


def _named(file: Path, section: dict[str, Any]) -> list[Path]:
    names = section.get("files", [])
    if unknown := sorted({*section} - {"files"}):
        raise BadRequest(f'{file} has the unknown entry {unknown[0]}: write [plugins] and files = ["my_dkd.py"]')
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise BadRequest(f'{file}: plugins.files is a list of files: write [plugins] and files = ["my_dkd.py"]')
    return [file.parent / Path(one).expanduser() for one in names]
