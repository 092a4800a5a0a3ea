"""Streamed sets by name: what is listed, what enters the identity, and folders that are refused."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kdtable.data import resolve
from kdtable.data.contents import MAX_FILE_BYTES
from kdtable.data.formats import image_folders
from kdtable.data.listing import Listing, Part
from kdtable.data.spec import check_batch_size
from kdtable.errors import BadRequest
from tests.data.photos import TRAIN, VAL, cub_folder, image_folder, photo


def names(listing: Listing, part: str) -> list[str]:
    return [os.fsdecode(name) for name in getattr(listing, part).names]


def test_an_image_folder(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "my photos")
    spec = resolve(f"imagenet:{root}")
    assert (spec.kind, spec.name, spec.key) == ("imagenet", "my photos", f"my_photos-{spec.sha256[:8]}-224")
    assert (spec.num_classes, spec.train_count, spec.test_count, spec.image_size) == (2, 5, 3, 224)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert spec.streamed
    assert not resolve("cifar100").streamed
    listing = image_folders.listed("imagenet", root)
    assert names(listing, "train") == [f"train/{name}" for name in TRAIN]
    assert names(listing, "test") == [f"val/{name}" for name in VAL]
    assert listing.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert listing.test.labels.tolist() == [0, 1, 1]
    assert listing.train.sizes.tolist() == [(root / "train" / name).stat().st_size for name in TRAIN]


def test_cub(tmp_path: Path) -> None:
    root = cub_folder(tmp_path / "CUB_200_2011")
    spec = resolve(f"cub200:{root}", 32)
    assert (spec.kind, spec.num_classes, spec.train_count, spec.test_count, spec.image_size) == ("cub200", 3, 5, 4, 32)
    listing = image_folders.listed("cub200", root)
    assert names(listing, "train")[:2] == ["images/001.Bird_0/Bird_0.jpg", "images/002.Bird_1/Bird_1.jpg"]
    assert listing.train.labels.tolist() == [0, 1, 2, 0, 1]
    assert listing.test.labels.tolist() == [2, 0, 1, 2]


def test_the_meaning_is_of_the_images_not_of_the_place(tmp_path: Path) -> None:
    spec = resolve(f"imagenet:{image_folder(tmp_path / 'one')}")
    assert resolve(f"imagenet:{image_folder(tmp_path / 'two')}").identity() == spec.identity()
    assert spec.identity()["image_size"] == 224
    assert resolve(f"imagenet:{tmp_path / 'one'}", 160).identity() == spec.identity() | {"image_size": 160}
    (tmp_path / "one/train/n01/.hidden.jpg").write_bytes(b"of the system")
    (tmp_path / "one/train/n01/notes.txt").write_text("not an image")
    (tmp_path / "one/val/.cache").mkdir()
    assert resolve(f"imagenet:{tmp_path / 'one'}").identity() == spec.identity()
    for change in (
        lambda root: (root / "train/n01/a.JPEG").rename(root / "train/n01/z.JPEG"),
        lambda root: photo(0, 30).save(root / "val/n01/x.JPEG"),
        lambda root: (root / "train/n02/a.JPEG").unlink(),
    ):
        before = resolve(f"imagenet:{tmp_path / 'two'}").identity()
        change(tmp_path / "two")
        assert resolve(f"imagenet:{tmp_path / 'two'}").identity() != before


def test_the_hash_stays_what_it_is() -> None:
    """Identities of stored runs rest on it."""
    train = Part.of([(b"train/a/1.jpg", 10, 0), (b"train/b/\xff.jpg", 300, 1)])
    listing = Listing(2, train, Part.of([(b"val/a/2.jpg", 20, 0)]))
    assert listing.sha256 == "47f6374c8acc54fa9305e8ac4b85f97b5c82c5999e76f6fc94ebc0a7de13c235"
    assert Listing(3, listing.train, listing.test).sha256 != listing.sha256
    assert Listing(2, listing.test, listing.train).sha256 != listing.sha256


def test_sets_in_memory_are_named_as_before() -> None:
    assert "image_size" not in resolve("cifar100").identity()
    for words in ({"image_size": 64}, {"skip_unreadable": True}):
        with pytest.raises(BadRequest, match="leave out --"):
            resolve("cifar100", **words)


@pytest.mark.parametrize("size", [7, 1025, -224])
def test_a_size_that_is_none(size: int, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=f"--image-size is from 8 to 1024 pixels, not {size}"):
        resolve(f"imagenet:{image_folder(tmp_path)}", size)


@pytest.mark.parametrize("name", ["imagenet", "imagenet:", "cub200"])
def test_a_name_without_a_path_says_how_to_get_the_set(name: str) -> None:
    with pytest.raises(BadRequest, match=r"lacks a path: write (imagenet|cub200):PATH; 'kdtable fetch-data"):
        resolve(name)


def test_the_test_images_may_be_called_test(tmp_path: Path) -> None:
    spec = resolve(f"imagenet:{image_folder(tmp_path)}")
    (tmp_path / "val").rename(tmp_path / "test")
    assert resolve(f"imagenet:{tmp_path}").test_count == spec.test_count


def test_deeper_folders_follow_the_images_beside_them(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    for name in ("b/2.webp", "a/c/0.jpg", "a/.thumbnails/0.jpg"):
        (root / "train/n01" / name).parent.mkdir(parents=True, exist_ok=True)
        photo(0).save(root / "train/n01" / name)
    (root / "train/n02/notes.txt").write_text("of somebody")
    found = [name.removeprefix("train/n01/") for name in names(image_folders.listed("imagenet", root), "train")[:5]]
    assert found == ["a.JPEG", "b.jpg", "c.png", "a/c/0.jpg", "b/2.webp"]
    (note,) = resolve(f"imagenet:{root}").notes
    assert note.endswith("left out for endings that are none of an image: train/n02/notes.txt")


def test_a_batch_must_be_filled(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has 5 training images, fewer than one batch of 6"):
        check_batch_size(resolve(f"imagenet:{image_folder(tmp_path)}"), 6)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set")
    (root / "train/n01/link.jpg").symlink_to("b.jpg")
    assert resolve(f"imagenet:{root}").train_count == 6


def test_a_folder_that_changed_since_it_was_resolved(tmp_path: Path) -> None:
    spec = resolve(f"imagenet:{image_folder(tmp_path)}")
    assert len(image_folders.described(spec).train) == 5
    (tmp_path / "train/n01/a.JPEG").unlink()
    resolve(f"imagenet:{tmp_path}")
    with pytest.raises(BadRequest, match="has changed while it was in use"):
        image_folders.described(spec)
    with pytest.raises(BadRequest, match="has changed while it was in use"):
        image_folders.described(replace(spec, skipped=("train/n01/b.jpg",)))


# --- what is refused ---------------------------------------------------------------------------------------------


def empty_class(root: Path) -> str:
    for part in ("train", "val"):
        (root / part / "n03").mkdir()
    return "train/n03: has no images; expected files that end in"


def classes_that_differ(root: Path) -> str:
    for number in range(4, 9):
        (root / f"val/n0{number}").mkdir()
    return "train and val differ in their classes: only one of them has n04, n05, n06 and 2 more$"


def no_val(root: Path) -> str:
    (root / "val").rename(root / "evaluation")
    return "has no folder val; expected train/CLASS"


def no_classes(root: Path) -> str:
    (root / "train").rename(root / "other")
    (root / "train").mkdir()
    return "train: has no class folders"


def nothing(root: Path) -> str:
    root.rename(root.parent / "elsewhere")
    return "set: no such folder of images"


def link_to_an_image_outside(root: Path) -> str:
    photo(0).save(root.parent / "outside.jpg")
    (root / "train/n01/link.jpg").symlink_to(root.parent / "outside.jpg")
    return "train/n01/link.jpg: is a link that leads outside"


def link_to_a_class_outside(root: Path) -> str:
    (root / "val/n02").rename(root.parent / "n02")
    (root / "val/n02").symlink_to(root.parent / "n02")
    return "val/n02: is a link that leads outside"


def link_to_nothing(root: Path) -> str:
    (root / "train/n01/link.jpg").symlink_to("nothing")
    return "train/n01/link.jpg: is not a file that can be read"


def too_many_bytes(root: Path) -> str:
    with (root / "val/n01/x.JPEG").open("ab") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    return "val/n01/x.JPEG: has 67108865 bytes, too many for an image"


FAULTS = [
    empty_class, classes_that_differ, no_val, no_classes, nothing, link_to_an_image_outside, link_to_a_class_outside,
    link_to_nothing, too_many_bytes,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_folders_are_refused(fault, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set")
    message = fault(root)
    with pytest.raises(BadRequest, match=message):
        resolve(f"imagenet:{root}")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set")
    (root / "train/n02").chmod(0)
    with pytest.raises(BadRequest, match="train/n02: cannot be read"):
        resolve(f"imagenet:{root}")


CUB_FAULTS = {
    "a missing index": ("classes.txt", None, "classes.txt: is not there"),
    "an empty index": ("images.txt", b"", "images.txt: line 1 is not a number and a text"),
    "no number": ("images.txt", b"one a.jpg\n", "images.txt: line 1 is not a number and a text"),
    "no text": ("train_test_split.txt", b"1 1\n2\n", "train_test_split.txt: line 2 is not a number and a text"),
    "a number twice": ("classes.txt", b"1 a\n1 b\n", "classes.txt: has a number a second time"),
    "classes with a gap": ("classes.txt", b"1 a\n3 b\n", "classes.txt: classes are not numbered from 1 to 2"),
    "an image without a label": (
        "image_class_labels.txt",
        b"1 1\n",
        "image 2 is not in all of images.txt, ",
    ),
    "a class without training images": ("classes.txt", b"1 a\n2 b\n3 c\n4 d\n", "class d has no training images"),
    "an unknown class": (
        "classes.txt",
        b"1 a\n2 b\n",
        "image 3 is of class 3 and part 1; expected a class",
    ),
}


@pytest.mark.parametrize("case", CUB_FAULTS)
def test_bad_cub_indices_are_refused(case: str, tmp_path: Path) -> None:
    root = cub_folder(tmp_path / "set")
    name, content, message = CUB_FAULTS[case]
    (root / name).unlink() if content is None else (root / name).write_bytes(content)
    with pytest.raises(BadRequest, match=message):
        resolve(f"cub200:{root}")


LINES = {
    "gone": ("images.txt", b"1 001.Bird_0/gone.jpg", "001.Bird_0/gone.jpg: is not there, but images.txt names it"),
    "upwards": ("images.txt", b"1 ../../outside.jpg", "outside.jpg: is a link that leads outside"),
    "absolute": ("images.txt", b"1 /etc/passwd", "/etc/passwd: is a link that leads outside"),
    "split": ("train_test_split.txt", b"1 2", "image 1 is of class 1 and part 2; expected .* 1 .training. or 0"),
}


@pytest.mark.parametrize("case", LINES)
def test_bad_lines_of_cub_indices_are_refused(case: str, tmp_path: Path) -> None:
    root = cub_folder(tmp_path / "set")
    name, line, message = LINES[case]
    photo(0).save(tmp_path / "outside.jpg")
    lines = (root / name).read_bytes().splitlines()
    (root / name).write_bytes(b"\n".join([line, *lines[1:]]))
    with pytest.raises(BadRequest, match=message):
        resolve(f"cub200:{root}")


def test_cub_without_test_images(tmp_path: Path) -> None:
    root = cub_folder(tmp_path)
    (root / "train_test_split.txt").write_bytes(b"".join(b"%d 1\n" % number for number in range(1, 10)))
    with pytest.raises(BadRequest, match="names no test images"):
        resolve(f"cub200:{root}")


def test_a_link_of_cub_that_leads_outside(tmp_path: Path) -> None:
    root = cub_folder(tmp_path / "set")
    image = root / "images/001.Bird_0/Bird_0.jpg"
    image.rename(tmp_path / "outside.jpg")
    image.symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(BadRequest, match=r"Bird_0\.jpg: is a link that leads outside"):
        resolve(f"cub200:{root}")
