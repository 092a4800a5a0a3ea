"""Fetching Tiny-ImageNet: no archive takes its name before all of it has been decoded."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from kdtable.data.formats import tiny_imagenet
from kdtable.data.formats.tiny_imagenet import ARCHIVE, NAME
from kdtable.data.spec import DataSpec, OnProgress
from kdtable.errors import BadRequest, Trouble
from kdtable.files.atomic import locked, set_aside
from kdtable.files.download import (
    Origin,
    Patience,
    Progress,
    SourceFailed,
    discard,
    download,
    fetch_into,
    shown,
)
from kdtable.files.pins import (
    Pin,
    add_pin,
    pins_file,
    read_pins,
)
from kdtable.files.trees import MAX_ARCHIVE_BYTES

#: There is no published checksum of it.
OFFICIAL: Final = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what.

    Attributes:
        downloaded: the bytes on disk and the file's size (``None`` when the server does not say).
        decoded: how many images of how many.
        notice: what a user should know though nothing failed.
    """

    downloaded: Progress
    decoded: OnProgress
    notice: Callable[[str], None]


def fetch(
    spec: DataSpec,
    root: Path,
    listener: Listener,
    *,
    source: str = OFFICIAL,
    allow_unverified: bool = False,
    timeout: float = 30.0,
    retries: int = 3,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """The archive in ``root``, fetched unless it is there, checked, and decoded for the next run.

    An unfinished download is kept and continued by the next call; one that is refused is deleted. An archive that is
    there but damaged, or has changed since it was fetched, is set aside and fetched again.

    Args:
        spec: what the archive must hold.
        root: folder of data sets.
        listener: is told how it goes on.
        source: URL of the archive, or a file.
        allow_unverified: take what comes over plain http, where anybody on the way can replace it, even if no checksum
            is pinned.
        timeout: seconds to wait for the next bytes.
        retries: further attempts after the first.
        pause: waits for that many seconds between attempts.

    Raises:
        Trouble: the source does not give the archive, what it gives is refused, or the folder cannot be used.
        BadRequest: the file of pins cannot be understood.
    """
    patience = Patience(timeout, retries, pause, listener.downloaded)
    job = _Job(spec, root, listener, source, allow_unverified, patience)
    try:
        with locked(root / ".fetch.lock", lambda: listener.notice(f"another process is fetching into {root}; waiting")):
            return job.run()
    except OSError as error:
        raise Trouble(f"Tiny-ImageNet cannot be put into {root}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Job:
    """The archive on its way into a folder; runs under the folder's lock."""

    spec: DataSpec
    root: Path
    listener: Listener
    source: str
    allow_unverified: bool
    patience: Patience

    @property
    def _remote(self) -> bool:
        return self.source.startswith(("http://", "https://"))

    @property
    def _place(self) -> str:
        """The source, as it is printed."""
        return shown(self.source) if self._remote else self.source

    def run(self) -> Path:
        pin = read_pins(self.root).get(NAME)  # before all else: a file of pins in disorder says nothing of the archive
        final = self.root / ARCHIVE
        if final.exists() and self._usable(final):
            return final
        try:
            fetch_into(
                final, [(self._place, partial(self._obtain, pinned=pin is not None))], partial(self._accept, pin=pin)
            )
        except SourceFailed as error:
            raise Trouble(
                f"Tiny-ImageNet could not be fetched. {error} Name another place with --from URL or "
                f"--from FILE, or put {ARCHIVE} into {self.root}."
            ) from error
        return final

    def _usable(self, final: Path) -> bool:
        """Whether the archive that is there is one; else it is set aside."""
        try:
            tiny_imagenet.read_or_decode(self.spec, self.root, self.listener.decoded)
        except BadRequest as error:
            self.listener.notice(f"{error}; it was set aside as {set_aside(final).name}")
            return False
        self.listener.notice(f"{final} was there already, and is whole")
        return True

    def _obtain(self, part: Path, *, pinned: bool) -> Origin:
        """Bring the source's bytes into ``part``."""
        if self._remote:
            # Over plain http only if a pin will show that somebody replaced the bytes on the way, or the user says so.
            return download(self.source, part, self.patience, plain=self.allow_unverified or pinned)
        file = Path(self.source).expanduser()
        if not file.is_file():
            raise SourceFailed("there is no such file, and it is no http:// or https:// URL")
        if file.stat().st_size > MAX_ARCHIVE_BYTES:
            raise SourceFailed(f"it is too large (more than {MAX_ARCHIVE_BYTES} bytes)")
        discard(part)
        shutil.copyfile(file, part)
        return Origin(str(file), plain=False)

    def _accept(self, part: Path, origin: Origin, *, pin: Pin | None) -> None:
        """Check what came, pin its checksum and keep what was decoded.

        Raises:
            SourceFailed: it is refused; it has been deleted.
        """
        try:
            tree = tiny_imagenet.open_archive(part)
            self._compare(tree.key, pin)
            arrays = tiny_imagenet.decode(self.spec, tree, self.listener.decoded)
        except BadRequest as error:
            discard(part)
            raise SourceFailed(f"what it gave is refused: {error}") from error
        add_pin(self.root, NAME, tree.key, origin.url)
        tiny_imagenet.keep(self.root, tree, arrays)
        if origin.plain and pin is None:
            self.listener.notice(
                f"{NAME} is unverified: it came over plain http and no checksum was known; {tree.key} is pinned in "
                f"{pins_file(self.root)}"
            )

    def _compare(self, sha256: str, pin: Pin | None) -> None:
        if pin is not None and pin.sha256 != sha256:
            raise BadRequest(
                f"its checksum is {sha256}, but {pin.sha256} is pinned; to accept the change, remove the line of "
                f"{NAME} in {pins_file(self.root)}"
            )
