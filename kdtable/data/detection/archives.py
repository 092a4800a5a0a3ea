"""The official archives of COCO 2017 and PASCAL VOC, and how they are unpacked. Does not import torch."""

import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kdtable.data import tars
from kdtable.errors import BadRequest
from kdtable.files.zips import open_zip

#: Limit of an archive in bytes, and of what it unpacks to: COCO's training images are 19.3e9 bytes.
MAX_ARCHIVE: Final = 2**35
#: Limit of one file in a zip archive: COCO's training boxes are 469e6 bytes.
_MAX_FILE: Final = 2**30
#: Limit of a zip archive's directory; that of COCO's training images has 118,288 entries of about 100 bytes.
_MAX_DIRECTORY: Final = 2**25

#: Called with each file that was unpacked.
OnFile = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Archive:
    """One official archive.

    Attributes:
        url: where it is published.
        md5: its published checksum.
        wanted: matches the names of the files that are needed; its group 1 is their name in the set's folder.
    """

    url: str
    md5: str
    wanted: re.Pattern[str]

    @property
    def file(self) -> str:
        """Its file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Published:
    """A set's archives, and its numbers of classes, training and test images."""

    archives: tuple[Archive, ...]
    counts: tuple[int, int, int]


_VOC_FILE: Final = re.compile(
    r"(?:\./)?VOCdevkit/(VOC20(?:07|12)/(?:JPEGImages/\w+\.jpg|Annotations/\w+\.xml|ImageSets/Main/\w+\.txt))"
)
_COCO: Final = "http://images.cocodataset.org"
_VOC: Final = "https://thor.robots.ox.ac.uk/pascal/VOC"

#: COCO publishes no checksums; these MD5 are the ones that downloaders of a dozen libraries pin. VOC's are
#: torchvision's (a test compares them), and so are its URLs.
PUBLISHED: Final[dict[str, Published]] = {
    "coco": Published(
        (
            # First what is small, and the boxes, which tell at once whether a place has the right files.
            Archive(
                f"{_COCO}/annotations/annotations_trainval2017.zip",
                "f4bbac642086de4f52a3fdda2de5fa2c",
                re.compile(r"(annotations/instances_(?:train|val)2017\.json)"),
            ),
            Archive(
                f"{_COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", re.compile(r"(val2017/\d{12}\.jpg)")
            ),
            Archive(
                f"{_COCO}/zips/train2017.zip",
                "cced6f7f71b7629ddf16f17bbcfab6b2",
                re.compile(r"(train2017/\d{12}\.jpg)"),
            ),
        ),
        (80, 118_287, 5_000),
    ),
    "voc": Published(
        (
            Archive(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", _VOC_FILE),
            Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", _VOC_FILE),
            Archive(f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", _VOC_FILE),
        ),
        (20, 16_551, 4_952),
    ),
}


def unpack(archive: Archive, path: Path, target: Path, on_file: OnFile) -> None:
    """Unpack the wanted files of an archive into ``target``; others are left out.

    Raises:
        BadRequest: it is damaged, no archive, or larger than it should be once unpacked.
        OSError: a file cannot be read or written.
    """
    if path.suffix == ".zip":
        _unpack_zip(archive, path, target, on_file)
        return
    total = 0

    def name_of(info: tarfile.TarInfo) -> str | None:
        nonlocal total
        if (match := archive.wanted.fullmatch(info.name)) is None:
            return None
        total = _added(path, total, info.size)
        on_file()
        return match[1]

    with tars.opened(path, None) as tar:
        tars.extract(path, tar, target, name_of)


def _unpack_zip(archive: Archive, path: Path, target: Path, on_file: OnFile) -> None:
    total = 0
    with path.open("rb") as file, _damage_of(path):
        whole = open_zip(file, _MAX_DIRECTORY)
        for name, entry in _wanted(archive.wanted, whole):
            if entry.file_size > _MAX_FILE:
                raise BadRequest(f"{path}: its entry {entry.filename} has too many bytes (at most {_MAX_FILE})")
            total = _added(path, total, entry.file_size)
            with whole.open(entry) as source:
                # With the size that it claims, or it could expand to more.
                content = source.read(entry.file_size)
            found = target / name
            found.parent.mkdir(parents=True, exist_ok=True)
            found.write_bytes(content)
            on_file()


def _wanted(pattern: re.Pattern[str], archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for entry in archive.infolist():
        if match := pattern.fullmatch(entry.filename):
            yield match[1], entry


def _added(path: Path, total: int, size: int) -> int:
    if total + size > MAX_ARCHIVE:
        raise BadRequest(f"{path}: has more than {MAX_ARCHIVE} bytes once unpacked")
    return total + size


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Turn the dozen kinds of errors that zipfile raises on damaged bytes into one."""
    try:
        yield
    except (BadRequest, OSError):
        raise
    except Exception as error:
        raise BadRequest(f"{path}: no zip archive, or a damaged one ({error})") from error
