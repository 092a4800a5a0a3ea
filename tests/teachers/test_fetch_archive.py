import tarfile
from io import BytesIO

import pytest

import kdtable.teachers.archive as archive_module
from kdtable.teachers.fetch import FetchFailed
from kdtable.teachers.manifest import Source
from tests.teachers.teacher_site import Reply, Small, as_file, teacher

MEMBER = "resnet56_vanilla/ckpt_epoch_240.pth"
PATH = "/download/cifar_teachers.tar"


def tar_of(*members: tuple[str, bytes], odd: tarfile.TarInfo | None = None, mode: str = "w") -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        if odd is not None:
            tar.addfile(odd)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return buffer.getvalue()


def odd(kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A member of the wanted name that is no plain file."""
    info = tarfile.TarInfo(MEMBER)
    info.type, info.linkname = kind, link
    return info


def sparse() -> tarfile.TarInfo:
    """It takes no room in the archive, and claims a million bytes."""
    info = tarfile.TarInfo(MEMBER)
    info.pax_headers = {
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": "1000000",
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
    }
    return info


def odd_number(header: str) -> bytes:
    """An archive in which a number is none; in form 1.0 the map would lie before the file's bytes."""
    info = tarfile.TarInfo(MEMBER)
    info.pax_headers = {f"GNU.sparse.{header}": "zz"}
    if header == "major":
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    return tar_of(odd=info)


def negative() -> bytes:
    """A member of -1 blocks: whoever goes on behind it comes back to it."""
    first, info = tarfile.TarInfo("first"), tarfile.TarInfo("second")
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[124:136] = b"\xff" + (256**11 - 512).to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return first.tobuf() + bytes(head) + bytes(1024)


@pytest.mark.parametrize("top", ["", "cifar_teachers/", "./cifar_teachers/"])
def test_only_the_wanted_member_is_taken(top, case, checkpoint):
    content = tar_of(("../../escaped", b"evil"), (f"{top}my_{MEMBER}", b"another"), (f"{top}{MEMBER}", checkpoint))
    url = case.site.answers(PATH, Reply(content))
    case.get(teacher(f"{case.site.url}/dead", Source(url, MEMBER)))
    assert case.final.read_bytes() == checkpoint
    assert sorted(file.name for file in case.folder.iterdir()) == [
        ".checksums.lock",
        ".fetch.lock",
        "checksums.toml",
        "cifar100",
    ]
    assert [file.name for file in case.final.parent.iterdir()] == ["resnet56.pth"]


def test_the_archive_is_resumed(case, checkpoint):
    content = tar_of((MEMBER, checkpoint))
    url = case.site.answers(PATH, Reply(content, stops_after=2000), Reply(content))
    case.get(teacher(Source(url, MEMBER)))
    assert case.site.ranges() == [None, "bytes=2000-"]
    assert case.final.read_bytes() == checkpoint


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tar_of(("cifar_teachers/readme", b"hello")), "there is no resnet56_vanilla"),
        (tar_of(odd=odd(tarfile.SYMTYPE, "/etc/hostname")), "is a link, or no file"),
        (tar_of(("a", b"secret"), odd=odd(tarfile.LNKTYPE, "a")), "is a link, or no file"),
        (tar_of(odd=odd(tarfile.LNKTYPE, "/etc/hostname")), "is a link, or no file"),
        (tar_of(odd=odd(tarfile.CHRTYPE)), "is a link, or no file"),
        (tar_of(odd=odd(tarfile.FIFOTYPE)), "is a link, or no file"),
        (tar_of(odd=odd(tarfile.DIRTYPE)), "is a link, or no file"),
        (tar_of(odd=sparse()), "is a link, or no file"),
        (tar_of((MEMBER, b"0" * 5000))[:3000], "no tar archive, or a damaged one"),
        (b"<html>moved</html>", "no tar archive"),
        (tar_of((MEMBER, b"0" * 5000), mode="w:gz"), "no tar archive"),
        (tar_of((MEMBER, b"0" * 9000)), "9000 bytes, too many"),
        *((odd_number(name), "no tar archive, or a damaged one") for name in ("size", "map", "realsize", "major")),
        (negative(), "no tar archive, or a damaged one"),
    ],
    ids=[
        "absent",
        "link",
        "hard link",
        "hard link outside",
        "device",
        "pipe",
        "folder",
        "sparse",
        "truncated",
        "page",
        "compressed",
        "too large",
        "a size that is no number",
        "a map that is none",
        "a real size that is no number",
        "no map",
        "a negative size",
    ],
)
def test_a_useless_archive_is_deleted(content, reason, case, checkpoint, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_BYTES", 8000)
    url = case.site.answers(PATH, Reply(content), Reply(tar_of((MEMBER, checkpoint))))
    with pytest.raises(FetchFailed, match=reason):
        case.get(teacher(Source(url, MEMBER)))
    assert list(case.final.parent.iterdir()) == []
    assert not list(case.folder.glob("*.tar*"))
    case.get(teacher(Source(url, MEMBER)))
    assert case.final.read_bytes() == checkpoint


def test_a_hostile_member_is_refused(case, trap):
    content = as_file({"model": Small().state_dict(), "opt": trap})
    url = case.site.answers(PATH, Reply(tar_of((MEMBER, content))))
    with pytest.raises(FetchFailed, match="only running code"):
        case.get(teacher(Source(url, MEMBER)))
    assert not trap.marker.exists()
    assert list(case.final.parent.iterdir()) == []
