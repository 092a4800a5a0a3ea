"""Known checksums of a published teacher's file, and a check of the file on disk. Does not import torch."""

from dataclasses import dataclass
from pathlib import Path

from kdtable.errors import BadRequest
from kdtable.files.pins import pins_file, read_pins
from kdtable.teachers.locations import BadTeacher, md5_of
from kdtable.teachers.manifest import Published


@dataclass(frozen=True, slots=True)
class Known:
    """A known checksum.

    Attributes:
        digits: the SHA-256's 64 hex digits, or as many of them as are published.
        origin: where it is from, and what to do if a file differs; part of a sentence.
        pinned: whether it is from the folder's pins.
    """

    digits: str
    origin: str
    pinned: bool

    @property
    def whole(self) -> bool:
        """Whether all digits are known; an attacker can forge a file that matches eight of them."""
        return len(self.digits) == 64

    def unlike(self, digest: str) -> str | None:
        """Why a file with the checksum ``digest`` (64 hex digits) is refused; ``None`` if it matches."""
        if digest.startswith(self.digits):
            return None
        return f"its checksum is {digest}, but {self.digits} {self.origin}"


def known_checksum(folder: Path, published: Published) -> Known | None:
    """A teacher's checksum from the folder's pins, else from its publication; ``None`` if neither has one.

    Raises:
        BadRequest: the file of pins is malformed.
    """
    pin = read_pins(folder).get(published.name)
    if pin is None:
        return None if published.sha256 is None else Known(published.sha256, "is published", pinned=False)
    seen = f"was seen on {pin.date} from {pin.source}" if pin.date else "is pinned"
    advice = f"to accept the change, remove the line of {published.name} in {pins_file(folder)}"
    return Known(pin.sha256, f"{seen}; {advice}", pinned=True)


def unlike_md5(path: Path, published: Published) -> str | None:
    """Why a file is refused by its published MD5; ``None`` if it matches, or none is published."""
    if published.md5 is None or (digest := md5_of(path)).startswith(published.md5):
        return None
    return f"its MD5 is {digest}, but {published.md5} is published"


def check_digest(path: Path, digest: str, folder: Path, published: Published) -> None:
    """Compare a file in the folder, which is not one that we trained, with its known checksum.

    Raises:
        BadTeacher: it has changed since it was fetched.
        BadRequest: it is not the published file, and may be the user's own.
    """
    known = known_checksum(folder, published)
    reason = unlike_md5(path, published) if known is None else known.unlike(digest)
    if reason is None:
        return
    if known is not None and known.pinned:
        raise BadTeacher(f"{path} has changed: {reason}")
    raise BadRequest(f"{path} is there, but not as published: {reason}; name it with --teacher, or move the file away")
