"""``checksums.toml``: pinned checksums of fetched files, as first seen."""

import json
import re
import tomllib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from kdtable.errors import BadRequest
from kdtable.files.atomic import locked, written_whole

_HEADER = """\
# Checksums of fetched files, as first seen. A download that differs is refused, and a file that changes later is
# set aside; to accept another one, remove its line, or write its checksum there.
"""


@dataclass(frozen=True, slots=True)
class Pin:
    """A pinned SHA-256 (64 hex digits), the file's URL, and the date when it was seen (ISO 8601, UTC).

    A line that a user wrote may have the checksum only.
    """

    sha256: str
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"'{self.sha256}' is not a SHA-256 of 64 lower-case hex digits")


def pins_file(folder: Path) -> Path:
    """The file with a folder's pins."""
    return folder / "checksums.toml"


def read_pins(folder: Path) -> dict[str, Pin]:
    """Read a folder's pins by name; empty if there is no file.

    Raises:
        BadRequest: the file is malformed.
    """
    path = pins_file(folder)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: Pin(**table) for name, table in tables.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRequest(f"{path} cannot be understood ({error}); correct or remove it") from error


def add_pin(folder: Path, name: str, sha256: str, source: str) -> None:
    """Pin a checksum, unless it is pinned already.

    Raises:
        BadRequest: another checksum is pinned.
    """
    with locked(folder / ".checksums.lock"):
        pins = read_pins(folder)
        if name in pins:
            if pins[name].sha256 != sha256:
                raise BadRequest(f"{pins_file(folder)} has another checksum of {name} than {sha256}")
            return
        pins[name] = Pin(sha256, source, datetime.now(UTC).date().isoformat())
        with written_whole(pins_file(folder), alone=True) as file:
            file.write(_toml(pins).encode())


def _toml(pins: dict[str, Pin]) -> str:
    return _HEADER + "".join(f"{_quoted(name)} = {{ {_fields(pin)} }}\n" for name, pin in sorted(pins.items()))


def _fields(pin: Pin) -> str:
    return ", ".join(f"{key} = {_quoted(value)}" for key, value in asdict(pin).items())


def _quoted(text: str) -> str:
    # A JSON string with unescaped non-ASCII characters is a TOML string, except for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
