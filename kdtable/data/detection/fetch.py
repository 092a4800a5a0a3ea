"""Fetch COCO 2017 and PASCAL VOC 2007 and 2012: archive after archive, each checked and unpacked when it is there."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kdtable.data.detection.archives import MAX_ARCHIVE, PUBLISHED, Archive, Published, unpack
from kdtable.data.detection.folders import read
from kdtable.data.spec import Listener
from kdtable.errors import BadRequest, Trouble, several
from kdtable.files.atomic import locked, sync, written_whole
from kdtable.files.download import PATIENT, Origin, Patience, SourceFailed, discard, download, fetch_into, shown

#: In the folder of an unfinished set: the checksums of the archives that are unpacked.
UNPACKED: Final = "unpacked.json"


def fetch(
    kind: str,
    root: Path,
    listener: Listener,
    *,
    source: str | None = None,
    allow_unverified: bool = False,
    patience: Patience = PATIENT,
) -> Path:
    """Put a set into ``root / kind`` unless it is there.

    An unfinished download is continued by the next call, and archives that are unpacked already are not asked for
    again. A downloaded archive is deleted once it is unpacked. The set's folder appears when all of it is there.

    Args:
        kind: ``coco`` or ``voc``.
        root: folder of data sets.
        listener: callbacks; progress is in files of the archive that is unpacked.
        source: a folder with the archives, or its URL; by default where they are published.
        allow_unverified: accept archives with other checksums, and over plain http; the numbers of images must still be
            the published ones.
        patience: timeouts, retries and progress of the downloads.

    Returns:
        The set's folder, for ``--data coco:FOLDER``.

    Raises:
        Trouble: an archive cannot be had, is damaged or another one, or the folder cannot be used.
    """
    job = _Job(kind, PUBLISHED[kind], root, listener, source, allow_unverified, replace(patience, limit=MAX_ARCHIVE))
    try:
        with locked(root / ".fetch.lock", lambda: listener.notice(f"another process is fetching into {root}; waiting")):
            return job.run()
    except SourceFailed as error:
        files = several([archive.file for archive in PUBLISHED[kind].archives])
        raise Trouble(
            f"{kind} could not be fetched. {error} Call again to go on where this ended, or name another place of "
            f"{files} with --from URL or --from DIR."
        ) from error
    except OSError as error:
        raise Trouble(f"{kind} cannot be put into {root}: {error}") from error
    except BadRequest as error:
        raise Trouble(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Job:
    """The fetch of a set; runs under the folder's lock."""

    kind: str
    published: Published
    root: Path
    listener: Listener
    source: str | None
    allow_unverified: bool
    patience: Patience

    @property
    def _part(self) -> Path:
        """The unfinished set."""
        return self.root / f".{self.kind}.part"

    def run(self) -> Path:
        final = self.root / self.kind
        if final.exists():
            self._check(final)
            self.listener.notice(f"{final} was there already, and has all of its images")
            return final
        done = self._unpacked()
        for archive in self.published.archives:
            if archive.file not in done:
                done[archive.file] = self._add(archive)
                with written_whole(self._part / UNPACKED, alone=True) as file:
                    file.write(json.dumps(done).encode())
        try:
            self._check(self._part)
        except BadRequest as error:
            shutil.rmtree(self._part)
            raise BadRequest(f"the downloaded archive is refused: {error}") from error
        (self._part / UNPACKED).unlink()
        os.sync()  # fsync of so many files, one by one, would take long
        self._part.replace(final)
        sync(final.parent)
        return final

    def _unpacked(self) -> dict[str, str]:
        """Checksums of the archives that earlier calls unpacked; unverified ones only if they are allowed now too."""
        self._part.mkdir(parents=True, exist_ok=True)
        memo = self._part / UNPACKED
        try:
            done = json.loads(memo.read_bytes()) if memo.exists() else {}
            known = {archive.file: archive.md5 for archive in self.published.archives}
            if self.allow_unverified or all(known[file] == md5 for file, md5 in done.items()):
                return {str(file): str(md5) for file, md5 in done.items()}
        except (ValueError, KeyError, AttributeError) as error:
            self.listener.notice(f"{self._part} is damaged ({error}) and made anew")
        shutil.rmtree(self._part)
        self._part.mkdir()
        return {}

    def _add(self, archive: Archive) -> str:
        """Get an archive, unpack it, and return its checksum."""
        if self.source is not None and not self.source.startswith(("http://", "https://")):
            path = Path(self.source).expanduser() / archive.file
            if not path.is_file():
                raise SourceFailed(f"{path}: there is no such file.")
            return self._unpack(archive, path, self._checked(path, archive))
        path = self._part / archive.file
        if not path.exists():
            self._download(archive, path)
        try:
            return self._unpack(archive, path, self._checked(path, archive))
        finally:
            path.unlink()  # a damaged one too: the next call gets it again

    def _download(self, archive: Archive, path: Path) -> None:
        """Download an archive; it gets its name when its checksum is right."""
        url = archive.url if self.source is None else f"{self.source.rstrip('/')}/{archive.file}"

        def obtain(part: Path) -> Origin:
            # Plain http is no danger: the checksum reveals replaced bytes.
            return download(url, part, self.patience, plain=True)

        def accept(part: Path, _: Origin) -> None:
            try:
                self._checked(part, archive)
            except BadRequest as error:
                discard(part)
                raise SourceFailed(f"what it gave is refused: {error}") from error

        fetch_into(path, [(shown(url), obtain)], accept)

    def _checked(self, path: Path, archive: Archive) -> str:
        """The archive's MD5.

        Raises:
            BadRequest: it is not the published one, and has to be.
        """
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != archive.md5 and not self.allow_unverified:
            raise BadRequest(
                f"{path}: its MD5 is {found}, and that of the official archive is {archive.md5}; get it again, or "
                "accept this one with --allow-unverified"
            )
        return found

    def _unpack(self, archive: Archive, path: Path, md5: str) -> str:
        done = 0

        def on_file() -> None:
            nonlocal done
            done += 1
            self.listener.progress(done, done)

        unpack(archive, path, self._part, on_file)
        return md5

    def _check(self, folder: Path) -> None:
        """Raise `BadRequest` unless the set has the published numbers of classes and images."""
        found = read(self.kind, folder.resolve())
        has = len(found.classes), len(found.train), len(found.test)
        if has != (wanted := self.published.counts):
            raise BadRequest(
                f"{folder}: has {has[1]} training and {has[2]} test images of {has[0]} classes; expected {wanted[1]}, "
                f"{wanted[2]} and {wanted[0]}"
            )
