"""``kdtable.toml`` in the working folder: plug-ins that every command loads."""

import tomllib
from pathlib import Path
from typing import Final

from kdtable.errors import BadRequest

NAME: Final = "kdtable.toml"


def configured(folder: Path) -> list[Path]:
    """The plug-ins that a folder's ``kdtable.toml`` names, relative to it; none if it has no such file.

        [plugins]
        files = ["my_dkd.py"]

    Raises:
        BadRequest: the file cannot be read, or says something else.
    """
    file = folder / NAME
    if not file.is_file():
        return []
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadRequest(f"{file} cannot be read: {error}") from error
    section = content.get("plugins", {})
    files = section.get("files", []) if isinstance(section, dict) else None
    unknown = sorted({*content} - {"plugins"}) or (sorted({*section} - {"files"}) if isinstance(section, dict) else [])
    if unknown:
        raise BadRequest(f'{file} has the unknown entry {unknown[0]}: write [plugins] and files = ["my_dkd.py"]')
    if not isinstance(files, list) or not all(isinstance(one, str) for one in files):
        raise BadRequest(f'{file}: plugins.files is a list of files: write [plugins] and files = ["my_dkd.py"]')
    return [folder / Path(one).expanduser() for one in files]
