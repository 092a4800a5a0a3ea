"""ImageNet and CUB-200-2011 out of archives of their layouts, and archives that are refused."""

import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from kdtable.data import tars, unpack
from kdtable.data.formats import image_folders, imagenet
from kdtable.data.formats.imagenet import (
    DEVKIT,
    META,
    TRAIN,
    TRUTH,
    VAL,
)
from kdtable.data.spec import Listener
from kdtable.errors import Trouble
from tests.data.archives import (
    TRUTH_NUMBERS,
    WNIDS,
    devkit_files,
    link,
    tar_of,
    train_files,
    val_files,
    write_cub,
    write_imagenet,
)
from tests.data.photos import cub_files, jpeg
from tests.tensor_files import MUTATIONS, mutations

OnProgress = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for all that anybody on this machine has written."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all archives, which are taken for the official ones."""
    monkeypatch.setattr(imagenet, "OFFICIAL", write_imagenet(tmp_path / "from"))
    monkeypatch.setattr(unpack, "CUB_MD5", write_cub(tmp_path / "from"))
    monkeypatch.setattr(unpack, "CUB_COUNTS", (3, 5, 4))
    return tmp_path / "from"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def unpacked(kind: str, source: Path, root: Path, **words: bool) -> tuple[OnProgress, list[str]]:
    told: OnProgress = []
    notes: list[str] = []
    listener = Listener(lambda *progress: told.append(progress), notes.append)
    assert unpack.unpack(kind, source, root, listener, **words) == root / kind
    assert left(root) == [kind]
    return told, notes


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".fetch.lock")


def refused(kind: str, source: Path, root: Path, **words: bool) -> str:
    quiet = Listener(lambda done, total: None, lambda text: None)
    with pytest.raises(Trouble) as caught:
        unpack.unpack(kind, source, root, quiet, **words)
    assert left(root) == []
    return str(caught.value)


# --- what is unpacked --------------------------------------------------------------------------------------------


def test_imagenet(source: Path, root: Path) -> None:
    told, notes = unpacked("imagenet", source, root)
    files = {str(path.relative_to(root / "imagenet")): path for path in (root / "imagenet").rglob("*.JPEG")}
    expected = {
        f"train/{name[:-4]}/{image}": data for name, part in train_files().items() for image, data in part.items()
    }
    for number, (image, data) in zip(TRUTH_NUMBERS, val_files().items(), strict=True):
        expected[f"val/{WNIDS[number - 1]}/{image}"] = data
    assert {name: path.read_bytes() for name, path in files.items()} == expected
    assert (told, notes) == ([(10, 10)], [])
    assert image_folders.listed("imagenet", root / "imagenet").train.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_cub200(source: Path, root: Path) -> None:
    told, _ = unpacked("cub200", source, root)
    files = {str(path.relative_to(root / "cub200")): path for path in (root / "cub200").rglob("*.*")}
    found = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    assert found == cub_files()
    assert told[-1] == (13, 13)


@pytest.mark.parametrize("kind", ["imagenet", "cub200"])
def test_what_is_there_is_left_alone(kind: str, source: Path, root: Path) -> None:
    unpacked(kind, source, root)
    for file in source.iterdir():
        file.unlink()
    _, notes = unpacked(kind, source, root)
    assert notes == [f"{root / kind} was there already, and has all of its images"]
    image = next((root / kind).rglob("*.jpg" if kind == "cub200" else "*.JPEG"))
    image.unlink()
    with pytest.raises(Trouble, match=r"expected 6, 4 and 3|is not there, but images\.txt names it"):
        unpacked(kind, source, root)


@pytest.mark.parametrize("kind", ["imagenet", "cub200"])
def test_what_a_killed_call_left_is_removed(kind: str, source: Path, root: Path) -> None:
    begun = root / f".{kind}.part" / "train" / WNIDS[0]
    begun.mkdir(parents=True)
    (begun / "half.JPEG").write_bytes(b"half")
    unpacked(kind, source, root)
    assert not list((root / kind).rglob("half.JPEG"))


@pytest.mark.parametrize("kind", ["imagenet", "cub200"])
def test_nothing_has_the_name_before_all_is_there(
    kind: str, source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before the last step."""

    def killed() -> None:
        assert left(root) == [f".{kind}.part"]
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        unpacked(kind, source, root)
    assert left(root) == []


def test_no_room(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "makefile", full)
    assert "imagenet cannot be put into" in refused("imagenet", source, root)


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT])
def test_an_archive_that_is_missing(name: str, source: Path, root: Path) -> None:
    (source / name).unlink()
    assert f"has no {name}; get them from https://image-net.org" in refused("imagenet", source, root)


def test_the_archive_of_cub_is_missing(tmp_path: Path, root: Path) -> None:
    assert "CUB_200_2011.tgz: is not there; get it from https://data.caltech.edu" in refused("cub200", tmp_path, root)


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT, "CUB_200_2011.tgz"])
def test_another_archive_is_refused_unless_the_user_says_so(name: str, source: Path, root: Path) -> None:
    """Bytes after the end change the checksum and nothing else."""
    with (source / name).open("ab") as file:
        file.write(bytes(512))
    kind = "cub200" if name.startswith("CUB") else "imagenet"
    message = refused(kind, source, root)
    assert f"{name}: its MD5 is " in message
    assert "accept this one with --allow-unverified" in message
    unpacked(kind, source, root, allow_unverified=True)


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT, "CUB_200_2011.tgz"])
@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_damaged_archive(name: str, content: bytes | None, source: Path, root: Path) -> None:
    whole = (source / name).read_bytes()
    (source / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    kind = "cub200" if name.startswith("CUB") else "imagenet"
    for allowed in (False, True):
        assert name in refused(kind, source, root, allow_unverified=allowed)


def of_train(changes: dict[str, object]) -> dict[str, object]:
    return {"train": train_files() | changes}


def of_val(changes: dict[str, object]) -> dict[str, object]:
    return {"val": val_files() | changes}


def of_devkit(changes: dict[str, object]) -> dict[str, object]:
    return {"devkit": devkit_files() | changes}


ONE = f"{WNIDS[0]}.tar"
IMAGE = f"{WNIDS[0]}_1.JPEG"
VAL_1 = "ILSVRC2012_val_00000001.JPEG"

BAD = {
    "upwards": (of_train({ONE: {"../../evil.JPEG": b"x"}}), "../../evil.JPEG is no training image"),
    "absolute": (of_train({ONE: {"/n00000003_1.JPEG": b"x"}}), "is no training image"),
    "a link": (of_train({ONE: {IMAGE: link(IMAGE, "/etc/passwd")}}), "its entry .* is a link, or no file"),
    "an image twice": (of_train({ONE: {IMAGE: b"x", f"./{IMAGE}": b"y"}}), "has 5 training and 4 test images"),
    "a class too few": ({"train": dict(list(train_files().items())[1:])}, "differ in their classes: only one of them"),
    "an image too few": (of_train({ONE: {IMAGE: b"x"}}), "has 5 training .* expected 6, 4 and 3"),
    "a class of another name": (
        {"train": {f"n0000000{k}.tar": {f"n0000000{k}_{n}.JPEG": b"x" for n in (1, 2)} for k in (1, 2, 4)}},
        "train and val differ in their classes: only one of them has n00000003, n00000004",
    ),
    "another validation image": (of_val({"ILSVRC2012_val_00000005.JPEG": b"x"}), "is none of 4 validation images"),
    "validation image 0": (of_val({"ILSVRC2012_val_00000000.JPEG": b"x"}), "is none of 4 validation images"),
    "a link among them": (of_val({VAL_1: link(VAL_1, "..")}), "is a link, or no file"),
    "a validation image too few": ({"val": dict(list(val_files().items())[1:])}, "and 3 test images|differ in"),
    "too few labels": (of_devkit({TRUTH: b"1\n2\n3\n"}), "is none of 3 validation images"),
    "a label without a class": (of_devkit({TRUTH: b"1\n2\n3\n4\n"}), "has a class 4, which .*meta.mat lacks"),
    "no table": (of_devkit({META: b"no table"}), "meta.mat is not the table of classes that it should be"),
    "no ground truth": ({"devkit": {META: b""}}, f"has no {TRUTH}"),
    "too large a table": (of_devkit({META: bytes(2**24 + 1)}), "16777217 bytes, too many"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_contents_are_refused_whatever_is_allowed(case: str, source: Path, root: Path) -> None:
    changes, message = BAD[case]
    write_imagenet(source, **changes)
    text = refused("imagenet", source, root, allow_unverified=True)
    assert re.search(message, text), text
    assert not (root.parent / "evil.JPEG").exists()


def test_what_is_no_archive_of_a_class(source: Path, root: Path) -> None:
    (source / TRAIN).write_bytes(tar_of({ONE: b"no archive" * 100}))
    assert f"its entry {ONE} is no tar archive" in refused("imagenet", source, root, allow_unverified=True)
    (source / TRAIN).write_bytes(tar_of({"../n00000003.tar": tar_of({})}))
    assert "its entry ../n00000003.tar is no archive of a class" in refused(
        "imagenet", source, root, allow_unverified=True
    )


def test_an_image_of_too_many_bytes(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_FILE_BYTES", len(jpeg(101)) - 1)
    assert "bytes, too many (at most" in refused("imagenet", source, root)


@MUTATIONS
@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT, "CUB_200_2011.tgz"])
def test_whatever_is_in_an_archive_nothing_lies_outside_the_folder(
    name: str, count: int, source: Path, root: Path
) -> None:
    kind = "cub200" if name.startswith("CUB") else "imagenet"
    quiet, refusals = Listener(lambda done, total: None, lambda text: None), 0
    others = sorted(root.parent.glob("*"))
    for _, content in mutations((source / name).read_bytes(), count):
        (source / name).write_bytes(content)
        try:
            unpack.unpack(kind, source, root, quiet, allow_unverified=True)
        except Trouble:
            refusals += 1
            assert left(root) == []
        else:  # there are no checksums of what lies inside
            shutil.rmtree(root / kind)
        assert sorted(root.parent.glob("*")) == sorted({*others, root})
    assert refusals > 0


GONE = "CUB_200_2011/images/001.Bird_0/Bird_0.jpg"
BAD_CUB: dict[str, tuple[dict[str, bytes | tarfile.TarInfo | None], str]] = {
    "an image is missing": ({GONE: None}, "what .* gave is refused: .*Bird_0.jpg: is not there"),
    "an index is missing": ({"CUB_200_2011/classes.txt": None}, "classes.txt: is not there"),
    "a link": ({GONE: link(GONE, "/etc/passwd")}, "is a link, or no file"),
    "fewer than there should be": (
        {
            "CUB_200_2011/images.txt": b"1 001.Bird_0/Bird_0.jpg\n9 003.Bird_2/Bird_8.jpg\n",
            "CUB_200_2011/classes.txt": b"1 a\n",
            "CUB_200_2011/image_class_labels.txt": b"1 1\n9 1\n",
            "CUB_200_2011/train_test_split.txt": b"1 1\n9 0\n",
        },
        "has 1 training and 1 test images of 1 classes; expected 5, 4 and 3",
    ),
}


@pytest.mark.parametrize("case", BAD_CUB)
def test_bad_contents_of_cub_are_refused(case: str, source: Path, root: Path) -> None:
    changes, message = BAD_CUB[case]
    write_cub(source, changes)
    text = refused("cub200", source, root, allow_unverified=True)
    assert re.search(message, text), text


def test_what_would_lead_out_of_the_folder_of_cub_is_not_unpacked(source: Path, root: Path) -> None:
    write_cub(source, {"CUB_200_2011/images/../../../evil.jpg": b"x", "/CUB_200_2011/images/a/b.jpg": b"x"})
    unpacked("cub200", source, root, allow_unverified=True)
    assert not list(root.parent.rglob("evil.jpg"))
    assert not (root / "cub200/images/a").exists()


def test_a_cub_that_unfolds_to_too_much(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_CUB_BYTES", 2000)
    assert "has more than 2000 bytes of images" in refused("cub200", source, root)
