"""Fetching published teachers: no download is trusted, and none takes its name before it has been checked."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kdtable.atomic import locked, replace_durably
from kdtable.errors import BadRequest
from kdtable.teachers.archive import extract
from kdtable.teachers.download import Patience, Progress, SourceFailed, discard, download, shown
from kdtable.teachers.manifest import Published, Source
from kdtable.teachers.pins import add_pin, check_pin, pins_file, read_pins
from kdtable.teachers.places import home, sha256_of

Notice = Callable[[str], None]


class FetchFailed(BadRequest):
    """No source gave the teacher: a sentence per source, and what to do."""


def fetch(
    published: Published,
    folder: Path,
    *,
    verify: Callable[[Path], None],
    mirror: str | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
    timeout: float = 30.0,
    retries: int = 3,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """The teacher's file in ``folder``, fetched unless it is there.

    An unfinished download is kept and continued by the next call; a file that is refused is deleted.

    Args:
        published: the teacher.
        folder: of teachers; the file becomes ``<folder>/<data set>/<network><suffix>``.
        verify: loads a file into the network; raises ``BadRequest`` when it does not fit.
        mirror: URL of a folder of teachers, tried before the published sources.
        progress: told the bytes on disk and the file's size (``None`` when the server does not say).
        notice: told what a user should know though nothing failed.
        timeout: seconds to wait for the next bytes.
        retries: further attempts at each source after the first.
        pause: waits for that many seconds between attempts.

    Raises:
        FetchFailed: no source gave a file that passed the checks.
        BadRequest: the file that is there is another one, or the folder cannot be written.
    """
    tell = notice or _silent
    job = _Job(published, folder, verify, tell, Patience(timeout, retries, pause, progress))
    sources = list(_sources(published, mirror))
    try:
        with locked(folder / ".fetch.lock", lambda: tell(f"another process is fetching into {folder}; waiting")):
            return job.run(sources)
    except OSError as error:
        raise BadRequest(f"the folder of teachers {folder} cannot be used: {error}") from error


def _silent(_: str) -> None:
    """Nobody listens."""


def _sources(published: Published, mirror: str | None) -> Iterator[Source]:
    if mirror is not None:
        if urlsplit(mirror).scheme not in {"http", "https"}:
            raise BadRequest(f"the mirror '{mirror}' is not an http:// or https:// URL")
        yield Source(f"{mirror.rstrip('/')}/{published.mirror_path}")
    yield from published.sources


@dataclass(frozen=True, slots=True)
class _Job:
    """One teacher on its way into a folder; runs under the folder's lock."""

    published: Published
    folder: Path
    verify: Callable[[Path], None]
    tell: Notice
    patience: Patience

    def run(self, sources: list[Source]) -> Path:
        wanted = self.published
        final = home(self.folder, wanted.dataset, wanted.network, wanted.suffix)
        if final.exists():
            self._check_present(final)
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(f"{final.name}.part")
        failures = []
        for source in sources:
            try:
                self._accept(part, self._obtain(source, part))
            except SourceFailed as error:
                failures.append(f"{shown(source.url)}: {error}.")
                continue
            replace_durably(part, final)
            discard(part)
            return final
        raise FetchFailed(
            f"{wanted.name} could not be fetched. {' '.join(failures)} Name another place with --mirror URL, "
            f"train it with --train-missing, or name a file with kdtable run --teacher {wanted.network}=FILE."
        )

    def _check_present(self, final: Path) -> None:
        """A file that is there may be somebody's own teacher: it is never replaced, only used or refused."""
        try:
            self._check_digest(sha256_of(final))
        except BadRequest as error:
            raise BadRequest(f"{final} is there, but not as published: {error}; or move the file away") from error
        if self.published.sha256 is None and self.published.name not in read_pins(self.folder):
            self.verify(final)
            self.tell(f"{final} was there already; no checksum of it is known, so it is used as it is")

    def _check_digest(self, digest: str) -> None:
        known = self.published.sha256
        if known is None:
            check_pin(self.folder, self.published.name, digest)
        elif not digest.startswith(known):
            raise BadRequest(f"its checksum is {digest}, but {known} is published")

    def _obtain(self, source: Source, part: Path) -> str:
        """Bring the source's bytes into ``part``; returns the URL that they came from."""
        if source.member is None:
            return download(source.url, part, self.patience)
        archive = self.folder / Path(urlsplit(source.url).path).name
        if not archive.exists():
            unfinished = archive.with_name(f"{archive.name}.part")
            download(source.url, unfinished, self.patience)
            replace_durably(unfinished, archive)
            discard(unfinished)
        discard(part)
        try:
            extract(archive, source.member, part)
        except SourceFailed:
            discard(part)
            archive.unlink()  # a damaged one would fail for ever
            raise
        return source.url

    def _accept(self, part: Path, url: str) -> None:
        """Check what came, and pin its checksum where none is published.

        Raises:
            SourceFailed: it is refused; it has been deleted.
        """
        wanted = self.published
        digest = sha256_of(part)
        try:
            self._check_digest(digest)
            self.verify(part)
        except BadRequest as error:
            discard(part)
            raise SourceFailed(str(error)) from error
        if wanted.sha256 is not None:
            return
        if add_pin(self.folder, wanted.name, digest, url) and urlsplit(url).scheme == "http":
            self.tell(
                f"{wanted.name} is unverified: it came over plain http and no checksum is published; "
                f"{digest} is pinned in {pins_file(self.folder)}"
            )
