"""What is known of a published teacher's file, and whether the one that is there still is that. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from kdtable.errors import BadRequest
from kdtable.files.pins import pins_file, read_pins
from kdtable.teachers.locations import BadTeacher
from kdtable.teachers.manifest import Published


@dataclass(frozen=True, slots=True)
class Known:
    """A checksum.

    Attributes:
        digits: the SHA-256's 64 hex digits, or as many of them as are published.
        origin: where it is known from, and what to do if a file differs, as a part of a sentence.
        pinned: whether it is of the folder's pins.
    """

    digits: str
    origin: str
    pinned: bool

    @property
    def whole(self) -> bool:
        """Whether all digits are known: a forger can match eight of them, who tries long enough."""
        return len(self.digits) == 64

    def unlike(self, digest: str) -> str | None:
        """What is wrong with a file of the checksum ``digest`` (64 hex digits); ``None`` if nothing is."""
        if digest.startswith(self.digits):
            return None
        return f"its checksum is {digest}, but {self.digits} {self.origin}"


def known_checksum(folder: Path, published: Published) -> Known | None:
    """What the folder's pins, or else the publication, say of a teacher's file; ``None`` for nothing.

    Raises:
        BadRequest: the file of pins cannot be understood.
    """
    pin = read_pins(folder).get(published.name)
    if pin is None:
        return None if published.sha256 is None else Known(published.sha256, "is published", pinned=False)
    seen = f"was seen on {pin.date} from {pin.source}" if pin.date else "is pinned"
    advice = f"to accept the change, remove the line of {published.name} in {pins_file(folder)}"
    return Known(pin.sha256, f"{seen}; {advice}", pinned=True)


def check_digest(path: Path, digest: str, folder: Path, published: Published) -> None:
    """Compare a file in the folder, which no run of ours made, with what is known of it.

    Raises:
        BadTeacher: it has changed since it was fetched.
        BadRequest: it is not the published file, and may be one of the user's own.
    """
    known = known_checksum(folder, published)
    reason = None if known is None else known.unlike(digest)
    if known is None or reason is None:
        return
    if known.pinned:
        raise BadTeacher(f"{path} has changed: {reason}")
    raise BadRequest(f"{path} is there, but not as published: {reason}; name it with --teacher, or move the file away")
