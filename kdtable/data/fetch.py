"""Fetch Tiny-ImageNet; the archive is renamed to its final name only after all of it was decoded."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from kdtable.data.contents import Arrays
from kdtable.data.formats import tiny_imagenet
from kdtable.data.formats.tiny_imagenet import ARCHIVE, NAME
from kdtable.data.spec import DataSpec, Listener
from kdtable.errors import BadRequest, Trouble
from kdtable.files.atomic import locked, set_aside
from kdtable.files.download import (
    PATIENT,
    Origin,
    Patience,
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
from kdtable.files.trees import MAX_ARCHIVE_BYTES, ZipTree

#: The official archive, for which no checksum is published.
OFFICIAL: Final = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def fetch(
    spec: DataSpec,
    root: Path,
    listener: Listener,
    *,
    source: str = OFFICIAL,
    allow_unverified: bool = False,
    patience: Patience = PATIENT,
) -> Path:
    """Fetch the archive into ``root`` unless it is there, check it, and decode it for the next run.

    An unfinished download is kept and continued by the next call; a refused one is deleted. An archive in ``root`` that
    is damaged, or has changed since it was fetched, is set aside and fetched again.

    Args:
        spec: the expected contents.
        root: folder of data sets.
        listener: callbacks.
        source: URL of the archive, or a file.
        allow_unverified: accept an archive over plain http, which an attacker can replace, even if no checksum is
            pinned.
        patience: timeouts, retries and progress of the download.

    Returns:
        The archive's path.

    Raises:
        Trouble: the source does not give the archive, the archive is refused, or the folder cannot be used.
        BadRequest: the file of pins is malformed.
    """
    job = _Job(spec, root, listener, source, allow_unverified, patience)
    try:
        with locked(root / ".fetch.lock", lambda: listener.notice(f"another process is fetching into {root}; waiting")):
            return job.run()
    except OSError as error:
        raise Trouble(f"Tiny-ImageNet cannot be put into {root}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Job:
    """The fetch of the archive; runs under the folder's lock."""

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
    def _printed_source(self) -> str:
        """The source without secrets, for messages."""
        return shown(self.source) if self._remote else self.source

    def run(self) -> Path:
        pin = read_pins(self.root).get(NAME)  # first: a malformed file of pins must not set the archive aside
        final = self.root / ARCHIVE
        if final.exists() and self._usable(final):
            return final
        decoded: list[tuple[ZipTree, Arrays]] = []
        accept = partial(self._accept, pin=pin, decoded=decoded)
        try:
            fetch_into(final, [(self._printed_source, partial(self._obtain, pinned=pin is not None))], accept)
        except SourceFailed as error:
            raise Trouble(
                f"Tiny-ImageNet could not be fetched. {error} Name another place with --from URL or "
                f"--from FILE, or put {ARCHIVE} into {self.root}."
            ) from error
        for tree, arrays in decoded:
            tiny_imagenet.keep(self.root, tree, arrays)
        return final

    def _usable(self, final: Path) -> bool:
        """Whether the existing archive is good; a bad one is set aside."""
        try:
            tiny_imagenet.read_or_decode(self.spec, self.root, self.listener.progress)
        except BadRequest as error:
            self.listener.notice(f"{error}; it was set aside as {set_aside(final).name}")
            return False
        self.listener.notice(f"{final} was there already, and is whole")
        return True

    def _obtain(self, part: Path, *, pinned: bool) -> Origin:
        """Fetch the source's bytes into ``part``."""
        if self._remote:
            # Plain http only if a pin would reveal replaced bytes, or the user allows it.
            return download(self.source, part, self.patience, plain=self.allow_unverified or pinned)
        file = Path(self.source).expanduser()
        if not file.is_file():
            raise SourceFailed("there is no such file, and it is no http:// or https:// URL")
        if file.stat().st_size > MAX_ARCHIVE_BYTES:
            raise SourceFailed(f"it is too large (more than {MAX_ARCHIVE_BYTES} bytes)")
        discard(part)
        shutil.copyfile(file, part)
        return Origin(str(file), plain=False)

    def _accept(self, part: Path, origin: Origin, *, pin: Pin | None, decoded: list[tuple[ZipTree, Arrays]]) -> None:
        """Check the archive, pin its checksum and keep the decoded arrays.

        Raises:
            SourceFailed: the archive is refused, and was deleted.
        """
        try:
            tree = tiny_imagenet.open_archive(part)
            self._compare(tree.key, pin)
            arrays = tiny_imagenet.decode(self.spec, tree, self.listener.progress)
        except BadRequest as error:
            discard(part)
            raise SourceFailed(f"what it gave is refused: {error}") from error
        add_pin(self.root, NAME, tree.key, origin.url)
        decoded.append((tree, arrays))
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
