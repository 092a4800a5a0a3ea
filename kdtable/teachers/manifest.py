"""Published teachers: ``manifest.toml`` as frozen dataclasses. Does not import torch."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

from kdtable.errors import BadRequest, unknown
from kdtable.models.names import canonical
from kdtable.typed import read


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file is published.

    Attributes:
        url: of the file, or of a tar archive that contains it.
        member: the end of the file's path in the archive; ``None`` if ``url`` is the file itself.
    """

    url: str
    member: str | None = None

    def of(self, file: str) -> "Source":
        """The source of one file, with "{file}" replaced."""
        return Source(self.url.format(file=file), self.member and self.member.format(file=file))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What the teachers of a collection share; see :class:`Published`."""

    paper: str
    citation: str
    dataset: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    suffix: str
    on_request: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Published(_Shared):
    """One published teacher.

    Attributes:
        name: data set and network, ``cifar100/resnet56``.
        network: the network's canonical name.
        dataset: key of the data set that it was trained on.
        num_classes: of that data set.
        sources: tried in this order.
        sha256: the published checksum or its first hex digits; ``None`` if none is published.
        md5: the same of the MD5, where that is published.
        claimed_top1: published accuracy on the test set, percent; of a detector its AP.
        mean: of the input normalisation in training, for images in [0, 1].
        std: of the same.
        paper: key of the publication that makes the claim.
        citation: the publication in words.
        suffix: of the file, with its dot.
        on_request: whether it is fetched only by name, not with all teachers.
    """

    name: str
    network: str
    sources: tuple[Source, ...]
    sha256: str | None
    claimed_top1: float
    md5: str | None = None

    @property
    def mirror_path(self) -> str:
        """The file's path under a mirror's URL, which is a copy of a folder of teachers."""
        return f"{self.name}{self.suffix}"


@dataclass(frozen=True, slots=True)
class _Teacher:
    """The part of a collection's entry that is specific to one teacher."""

    network: str
    file: str
    claimed_top1: float
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collection(_Shared):
    """Teachers that share everything except the network, the file and the claim."""

    sources: tuple[Source, ...]
    teachers: tuple[_Teacher, ...]

    def published(self) -> Iterator[Published]:
        """The collection's teachers."""
        shared = {field.name: getattr(self, field.name) for field in fields(_Shared)}
        for teacher in self.teachers:
            yield Published(
                **shared,
                name=f"{self.dataset}/{teacher.network}",
                network=teacher.network,
                sources=tuple(source.of(teacher.file) for source in self.sources),
                sha256=teacher.sha256,
                claimed_top1=teacher.claimed_top1,
                md5=teacher.md5,
            )


@cache
def _manifest() -> dict[str, Published]:
    text = (files(__package__) / "manifest.toml").read_text(encoding="utf-8")
    collections = [read(_Collection, raw) for raw in tomllib.loads(text)["collection"]]
    return {entry.name: entry for collection in collections for entry in collection.published()}


def published() -> dict[str, Published]:
    """Published teachers by name, in the manifest's order."""
    return dict(_manifest())


def find(names: Sequence[str]) -> list[Published]:
    """The teachers with these names, without duplicates; without names, all except those on request.

    A name is ``cifar100/resnet56``, or a network in any spelling that ``kdtable.models`` accepts.

    Raises:
        BadRequest: unknown name; the nearest known ones are suggested.
    """
    if not names:
        return [entry for entry in _manifest().values() if not entry.on_request]
    found = {entry.name: entry for name in names for entry in _meant(name)}
    return list(found.values())


def _meant(name: str) -> list[Published]:
    dataset, _, network = name.rpartition("/")
    try:
        network = canonical(network)
    except BadRequest:
        raise unknown("published teacher", name, _manifest()) from None
    meant = [e for e in _manifest().values() if e.network == network and dataset in {"", e.dataset}]
    if not meant:
        raise unknown("published teacher", name, _manifest())
    return meant


def lookup(dataset_key: str, network: str) -> Published | None:
    """The published teacher for a data set and a network's canonical name, if there is one."""
    return _manifest().get(f"{dataset_key}/{network}")


def by_checksum(sha256: str) -> Published | None:
    """The teacher whose published checksum, or its published first digits, match ``sha256`` (64 hex digits)."""
    for entry in _manifest().values():
        if entry.sha256 is not None and sha256.startswith(entry.sha256):
            return entry
    return None


def by_file_name(name: str) -> Published | None:
    """The teacher whose published checksum is part of the file name, as in ``resnet20-12fca82f.th``."""
    return next((entry for entry in _manifest().values() if entry.sha256 is not None and entry.sha256 in name), None)
