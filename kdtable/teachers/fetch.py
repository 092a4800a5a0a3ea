"""Fetch published teachers; a download is renamed to its final name only after it passed all checks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from kdtable.errors import BadRequest
from kdtable.files.atomic import locked, replace_durably, set_aside
from kdtable.files.download import (
    PATIENT,
    Origin,
    Patience,
    SourceFailed,
    discard,
    download,
    fetch_into,
    part_of,
    shown,
)
from kdtable.files.pins import add_pin, pins_file
from kdtable.teachers.archive import extract
from kdtable.teachers.locations import (
    BadTeacher,
    home,
    lock_of,
    sha256_of,
)
from kdtable.teachers.manifest import Published, Source
from kdtable.teachers.present import check_digest, known_checksum, unlike_md5

Notice = Callable[[str], None]
#: Raises ``BadTeacher`` for a file that does not fit its network; returns the id of our run that trained it, if any.
Verify = Callable[[Path], str | None]


class FetchFailed(BadRequest):
    """No source gave the teacher; the text has a sentence per source, and what to do."""


def fetch(
    published: Published,
    folder: Path,
    *,
    verify: Verify,
    mirror: str | None = None,
    allow_unverified: bool = False,
    notice: Notice = lambda text: None,
    patience: Patience = PATIENT,
) -> Path:
    """Fetch the teacher into ``folder`` unless it is there; return the file's path.

    An unfinished download is kept and continued by the next call; a refused one is deleted. A file in the folder that
    is damaged, or has changed since it was fetched, is set aside and fetched again.

    Args:
        published: the teacher.
        folder: of teachers; the file becomes ``<folder>/<data set>/<network><suffix>``.
        verify: loads a file into the network.
        mirror: URL of a folder of teachers, tried before the published sources.
        allow_unverified: accept a file over plain http, which an attacker can replace, even if no whole checksum is
            known.
        notice: called with messages for the user that are no errors.
        patience: timeouts, retries and progress of the downloads.

    Raises:
        FetchFailed: no source gave a file that passed the checks.
        BadRequest: the folder has another file of that name, or cannot be written.
    """
    job = _Job(published, folder, verify, notice, allow_unverified, patience)
    sources = list(_sources(published, mirror))
    try:
        with locked(lock_of(folder), lambda: notice(f"another process is fetching into {folder}; waiting")):
            return job.run(sources)
    except OSError as error:
        raise BadRequest(f"the folder of teachers {folder} cannot be used: {error}") from error


def _sources(published: Published, mirror: str | None) -> Iterator[Source]:
    if mirror is not None:
        yield Source(f"{mirror.rstrip('/')}/{published.mirror_path}")
    yield from published.sources


@dataclass(frozen=True, slots=True)
class _Job:
    """The fetch of one teacher; runs under the folder's lock."""

    published: Published
    folder: Path
    verify: Verify
    notice: Notice
    allow_unverified: bool
    patience: Patience

    def run(self, sources: list[Source]) -> Path:
        wanted = self.published
        final = home(self.folder, wanted.dataset, wanted.network, wanted.suffix)
        if final.exists() and self._usable(final):
            discard(part_of(final))  # left by a process that was killed after the rename
            return final
        try:
            fetch_into(final, [(shown(source.url), partial(self._obtain, source)) for source in sources], self._accept)
        except SourceFailed as error:
            raise FetchFailed(
                f"{wanted.name} could not be fetched. {error} Name another place with --mirror URL, "
                f"train it with --train-missing, or name a file with kdtable run --teacher {wanted.network}=FILE."
            ) from error
        return final

    def _usable(self, final: Path) -> bool:
        """Whether the existing file is the teacher; a damaged or changed one is set aside.

        Raises:
            BadRequest: it may be the user's own teacher, which is never moved.
        """
        try:
            if self.verify(final) is not None:
                return True  # trained here, instead of fetched
            check_digest(final, sha256_of(final), self.folder, self.published)
        except BadTeacher as error:
            self.notice(f"{error}; it was set aside as {set_aside(final).name}, and is fetched again")
            return False
        if known_checksum(self.folder, self.published) is None and self.published.md5 is None:
            self.notice(f"{final} was there already; no checksum of it is known, so it is used as it is")
        return True

    def _obtain(self, source: Source, part: Path) -> Origin:
        """Fetch the source's bytes into ``part``."""
        known = known_checksum(self.folder, self.published)
        # Plain http only if the checksum would reveal replaced bytes, or the user allows it.
        plain = self.allow_unverified or (known is not None and known.whole)
        if source.member is None:
            return download(source.url, part, self.patience, plain=plain)
        archive = self.folder / Path(urlsplit(source.url).path).name
        origin = Origin(shown(source.url), plain=False)
        unfinished = part_of(archive)
        if not archive.exists():
            origin = download(source.url, unfinished, self.patience, plain=plain)
            replace_durably(unfinished, archive)
        discard(unfinished)
        discard(part)
        try:
            extract(archive, source.member, part)
        except SourceFailed:
            discard(part)
            archive.unlink()  # else a damaged one would fail forever
            raise
        if origin.plain:
            archive.unlink()  # else another teacher from it would pass for one that came over https
        return origin

    def _accept(self, part: Path, origin: Origin) -> None:
        """Check the downloaded file, and pin its checksum.

        Raises:
            SourceFailed: the file is refused, and was deleted.
        """
        wanted = self.published
        digest = sha256_of(part)
        known = known_checksum(self.folder, wanted)
        try:
            reason = unlike_md5(part, wanted) if known is None else known.unlike(digest)
            if reason is not None:
                raise BadTeacher(reason)
            self.verify(part)
        except BadRequest as error:
            discard(part)
            raise SourceFailed(str(error)) from error
        add_pin(self.folder, wanted.name, digest, origin.url)
        if origin.plain and (known is None or not known.whole):
            self.notice(
                f"{wanted.name} is unverified: it came over plain http and no whole checksum was known; "
                f"{digest} is pinned in {pins_file(self.folder)}"
            )
