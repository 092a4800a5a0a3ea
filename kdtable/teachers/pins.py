"""``checksums.toml``: the checksum that a teacher without a published one had when it was first seen."""

import json
import tomllib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from kdtable.atomic import locked, written_whole
from kdtable.errors import BadRequest

_HEADER = """\
# Checksums, as first seen, of fetched teachers that have no published one. A file that differs later is
# refused; to accept it, remove its line.
"""


@dataclass(frozen=True, slots=True)
class Pin:
    """What was seen first: the checksum (64 hex digits), the URL that gave it, the day (ISO 8601, UTC)."""

    sha256: str
    source: str
    date: str


def pins_file(folder: Path) -> Path:
    """Where the pins of a folder of teachers are kept."""
    return folder / "checksums.toml"


def read_pins(folder: Path) -> dict[str, Pin]:
    """The pins by teacher's name; empty when there is no file.

    Raises:
        BadRequest: the file is there, but cannot be understood.
    """
    path = pins_file(folder)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: Pin(**table) for name, table in tables.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise BadRequest(f"{path} cannot be understood ({error}); correct or remove it") from error


def check_pin(folder: Path, name: str, sha256: str) -> None:
    """Compare with the pin, if there is one.

    Raises:
        BadRequest: the checksum is another one than when the teacher was first seen.
    """
    pin = read_pins(folder).get(name)
    if pin is not None and pin.sha256 != sha256:
        raise BadRequest(
            f"its checksum is {sha256}, but {pin.sha256} was seen on {pin.date} from {pin.source}; "
            f"to accept the change, remove the line of {name} in {pins_file(folder)}"
        )


def add_pin(folder: Path, name: str, sha256: str, source: str) -> bool:
    """Remember a checksum; whether it is new.

    Raises:
        BadRequest: another one is remembered already.
    """
    with locked(folder / ".checksums.lock"):
        check_pin(folder, name, sha256)
        pins = read_pins(folder)
        if name in pins:
            return False
        pins[name] = Pin(sha256, source, datetime.now(UTC).date().isoformat())
        with written_whole(pins_file(folder)) as file:
            file.write(_toml(pins).encode())
        return True


def _toml(pins: dict[str, Pin]) -> str:
    return _HEADER + "".join(f"{_quoted(name)} = {{ {_fields(pin)} }}\n" for name, pin in sorted(pins.items()))


def _fields(pin: Pin) -> str:
    return ", ".join(f"{key} = {_quoted(value)}" for key, value in asdict(pin).items())


def _quoted(text: str) -> str:
    # A JSON string is a TOML string as long as non-ASCII characters stay as they are.
    return json.dumps(text, ensure_ascii=False)
