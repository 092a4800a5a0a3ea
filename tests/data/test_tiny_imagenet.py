"""Tiny-ImageNet from archives of its layout that are made here: a few classes of a few photographs."""

import io
import os
import stat
import struct
import threading
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable.data import load, resolve
from kdtable.data.formats import tiny_imagenet
from kdtable.data.spec import BUILT_IN
from kdtable.errors import BadRequest
from kdtable.files.pins import add_pin
from kdtable.training.build import build_student, network_shapes, output_shapes
from tests.tensor_files import MUTATIONS, mutations

SPEC = replace(BUILT_IN["tiny-imagenet"], num_classes=3, train_count=12, test_count=6)
WNIDS = ("n03", "n01", "n02")  # as in the official list, not in their order
TOP = "tiny-imagenet-200"
GREY = "train/n02/images/n02_1.JPEG"
VAL = "val/images/val_4.JPEG"
ANNOTATIONS = "val/val_annotations.txt"

#: Contents by name below the archive's folder.
Files = dict[str, bytes]


def jpeg(seed: int, size: int = 64, mode: str = "RGB") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def tiny_files() -> Files:
    """Four training images of each class, one of them grey; two test images of each; what else the archive has."""
    files: Files = {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tgoldfish\n"}
    for place, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"n01_0.JPEG\t0\t10\t63\t58\n"
        for number in range(4):
            name = f"train/{wnid}/images/{wnid}_{number}.JPEG"
            files[name] = jpeg(10 * place + number, mode="L" if name == GREY else "RGB")
    for number in range(6):
        files[f"val/images/val_{number}.JPEG"] = jpeg(100 + number)
    files["test/images/test_0.JPEG"] = jpeg(200)
    lines = (f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t32\t44\t62\n" for number in range(6))
    return files | {ANNOTATIONS: "".join(lines).encode()}


def pack(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir(TOP)
        for name, content in files.items():
            archive.writestr(f"{TOP}/{name}", content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pack(tmp_path / "data" / f"{TOP}.zip", tiny_files())
    return tmp_path / "data"


def rgb(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def read(root: Path) -> dict[str, np.ndarray]:
    return tiny_imagenet.read(SPEC, root)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def refused(root: Path) -> str:
    with pytest.raises(BadRequest) as caught:
        read(root)
    assert not (root / tiny_imagenet.KEPT).exists()
    return str(caught.value)


# --- what is read ------------------------------------------------------------------------------------------------


def test_what_it_is():
    spec = resolve("tiny-imagenet")
    assert (spec.num_classes, spec.train_count, spec.test_count, spec.image_size) == (200, 100_000, 10_000, 64)
    assert spec.identity() == {
        "kind": "tiny-imagenet",
        "num_classes": 200,
        "mean": [0.4802, 0.4481, 0.3975],
        "std": [0.2770, 0.2691, 0.2821],
        "flip": True,
    }


def check_content(arrays: dict[str, np.ndarray], files: Files) -> None:
    train = sorted(name for name in files if name.startswith("train/") and name.endswith(".JPEG"))
    assert arrays["train_labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4  # by sorted wnid
    assert arrays["test_labels"].tolist() == [2, 0, 1, 2, 0, 1]
    for image, name in zip(arrays["train_images"], train, strict=True):
        np.testing.assert_array_equal(image, rgb(files[name]))
    for number, image in enumerate(arrays["test_images"]):
        np.testing.assert_array_equal(image, rgb(files[f"val/images/val_{number}.JPEG"]))
    grey = arrays["train_images"][train.index(GREY)]
    assert np.array_equal(grey[0], grey[1])
    assert np.array_equal(grey[0], grey[2])
    assert grey.std() > 0


def test_the_archive(root):
    check_content(read(root), tiny_files())


def test_images_stored_as_they_are(tmp_path):
    pack(tmp_path / f"{TOP}.zip", tiny_files(), zipfile.ZIP_STORED)
    check_content(read(tmp_path), tiny_files())


def test_load_makes_tensors(root):
    images = load(SPEC, root)
    assert (images.train_images.shape, images.train_images.dtype) == ((12, 3, 64, 64), torch.uint8)
    assert (images.test_images.shape, images.test_labels.dtype) == ((6, 3, 64, 64), torch.int64)
    assert same(read(root), {name: getattr(images, name).numpy() for name in read(root)})


def test_other_files_are_no_images(root):
    """Archives that were made on macOS have them."""
    files = tiny_files()
    pack(root / f"{TOP}.zip", files | {"train/n01/images/._n01_0.JPEG": b"x", "train/n01/images/.DS_Store": b"x"})
    with zipfile.ZipFile(root / f"{TOP}.zip", "a") as archive:
        archive.writestr(f"__MACOSX/{TOP}/train/n09/images/n09_0.JPEG", b"x")
    check_content(read(root), files)


def test_a_directory_as_large_as_the_official_one(root):
    with zipfile.ZipFile(root / f"{TOP}.zip", "a") as archive:
        for number in range(8000):
            archive.writestr(f"{TOP}/test/images/{'x' * 2000}{number}.JPEG", b"")
    check_content(read(root), tiny_files())


def test_progress_is_told(root):
    told = []
    tiny_imagenet.read(SPEC, root, lambda done, total: told.append((done, total)))
    assert told == [(0, 18), (18, 18)]


def test_nothing_there(tmp_path):
    text = refused(tmp_path)
    assert all(part in text for part in ("is not in", "kdtable fetch-data tiny-imagenet", f"{TOP}.zip", "--data-root"))
    assert list(tmp_path.iterdir()) == []


def test_the_official_numbers_are_asked_for(root):
    with pytest.raises(BadRequest, match="has images of 3 classes; expected 200"):
        load(resolve("tiny-imagenet"), root)


# --- what is kept ------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """One entry for every decoding."""
    calls: list[int] = []
    real = tiny_imagenet.decode
    monkeypatch.setattr(tiny_imagenet, "decode", lambda *words: calls.append(1) or real(*words))
    return calls


def test_it_is_decoded_once(root, decoded):
    first = read(root)
    assert same(read(root), first)
    assert decoded == [1]


def test_a_changed_archive_is_decoded_again(root, decoded):
    read(root)
    files = tiny_files() | {VAL: jpeg(999)}
    pack(root / f"{TOP}.zip", files)
    check_content(read(root), files)
    assert decoded == [1, 1]


def test_what_another_version_kept_is_not_read(root, decoded, monkeypatch):
    read(root)
    monkeypatch.setattr(tiny_imagenet, "FORMAT", tiny_imagenet.FORMAT + 1)
    read(root)
    assert decoded == [1, 1]


@MUTATIONS
def test_damage_of_what_is_kept_is_mended(count, root, decoded):
    expected = read(root)
    kept = root / tiny_imagenet.KEPT
    for what, content in mutations(kept.read_bytes(), count):
        kept.write_bytes(content)
        assert same(read(root), expected), what
    assert len(decoded) > count / 2
    again = len(decoded)
    assert same(read(root), expected)
    assert len(decoded) == again


def test_a_killed_process_leaves_nothing_for_good(root):
    leftover = root / f".{tiny_imagenet.KEPT}.part"
    leftover.write_bytes(b"half")
    read(root)
    assert sorted(path.name for path in root.iterdir()) == [tiny_imagenet.LOCK, tiny_imagenet.KEPT, f"{TOP}.zip"]


def test_a_folder_that_cannot_be_written_is_only_read(root, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who can write everywhere
    check_content(read(root), tiny_files())
    assert [path.name for path in root.iterdir()] == [f"{TOP}.zip"]


def test_where_nothing_can_be_kept_a_sentence_says_so(root):
    (root / tiny_imagenet.KEPT).mkdir()
    with pytest.raises(BadRequest, match=r"Tiny-ImageNet in .* cannot be read or kept"):
        read(root)
    assert not list(root.glob(f".{tiny_imagenet.KEPT}*"))


def test_of_two_at_once_one_decodes(root, decoded):
    results: list[dict[str, np.ndarray]] = []
    threads = [threading.Thread(target=lambda: results.append(read(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoded == [1]
    assert len(results) == 4
    assert all(same(result, results[0]) for result in results)


# --- what is refused ---------------------------------------------------------------------------------------------


def without(name: str) -> Files:
    return {key: content for key, content in tiny_files().items() if key != name}


def annotated(old: str, new: str) -> Files:
    files = tiny_files()
    text = files[ANNOTATIONS].decode()
    assert old in text
    return files | {ANNOTATIONS: text.replace(old, new, 1).encode()}


def cut(name: str) -> Files:
    whole = tiny_files()[name]
    return tiny_files() | {name: whole[: len(whole) // 2]}


LINE = "val_4.JPEG\tn01\t0\t32\t44\t62\n"
WRONG: dict[str, tuple[Callable[[], Files], str]] = {
    "no annotations": (lambda: without(ANNOTATIONS), f"{ANNOTATIONS}: is not there"),
    "an annotated image is missing": (lambda: without(VAL), f"{VAL}: is in only one of val/images and {ANNOTATIONS}"),
    "an image has no annotation": (
        lambda: annotated(LINE, ""),
        f"{VAL}: is in only one of val/images and {ANNOTATIONS}",
    ),
    "an image is annotated twice": (
        lambda: annotated(LINE, 2 * LINE),
        "line 6 does not give another image",
    ),
    "a class without images": (lambda: annotated("4.JPEG\tn01", "4.JPEG\tn07"), "line 5 does not give"),
    "a line cut short": (lambda: annotated("\t44\t62\n", ""), "line 1 does not give"),
    "a way out of the archive": (lambda: annotated("val_4", "../../../val_4"), "val_4.JPEG: is in only one of"),
    "an absolute path": (lambda: annotated("val_4.JPEG", "/etc/passwd"), "/etc/passwd: is in only one of"),
    "annotations of noise": (lambda: tiny_files() | {ANNOTATIONS: bytes(range(256))}, "line 1 does not give"),
    "annotations without end": (lambda: tiny_files() | {ANNOTATIONS: bytes(2**23)}, "has too many bytes"),
    "an image is missing": (lambda: without(GREY), "train/n02/images: has 3 images; expected 4"),
    "an image too many": (
        lambda: tiny_files() | {"train/n02/images/n02_9.JPEG": jpeg(9)},
        "train/n02/images: has 5 images; expected 4",
    ),
    "a class too many": (lambda: tiny_files() | {"train/n09/images/n09_0.JPEG": jpeg(9)}, "has images of 4 classes"),
    "no training images": (lambda: {ANNOTATIONS: b""}, "has images of 0 classes; expected 3"),
    "too many test images": (
        lambda: annotated(LINE, LINE + LINE.replace("val_4", "val_9")) | {"val/images/val_9.JPEG": jpeg(9)},
        "val/images: has 7 images; expected 6",
    ),
    "an image that is none": (lambda: tiny_files() | {VAL: b"not an image"}, f"{VAL}: not an image"),
    "an image cut short": (lambda: cut(GREY), f"{GREY}: not an image that can be read"),
    "an empty image": (lambda: tiny_files() | {GREY: b""}, f"{GREY}: not an image that can be read"),
    "another size": (lambda: tiny_files() | {GREY: jpeg(1, 32)}, f"{GREY}: 32 x 32 pixels; expected 64 x 64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_contents(case, tmp_path):
    make, message = WRONG[case]
    where = pack(tmp_path / f"{TOP}.zip", make())
    text = refused(tmp_path)
    assert message in text
    assert str(where) in text
    assert "kdtable fetch-data tiny-imagenet" in text


def test_an_archive_cut_short(root):
    whole = (root / f"{TOP}.zip").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-10], whole[3000:], b"", b"no zip file"):
        (root / f"{TOP}.zip").write_bytes(content)
        assert f"{TOP}.zip" in refused(root)


@MUTATIONS
def test_a_damaged_archive_holds_the_same_images_or_is_refused(count, root):
    whole, expected = (root / f"{TOP}.zip").read_bytes(), read(root)
    refusals = 0
    for what, content in mutations(whole, count):
        (root / f"{TOP}.zip").write_bytes(content)
        (root / tiny_imagenet.KEPT).unlink(missing_ok=True)
        try:
            found = read(root)
        except BadRequest:
            refusals += 1
        else:
            assert same(found, expected), what
    assert refusals > count / 2


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "info",
    [
        entry(f"{TOP}/../../outside.JPEG"),
        entry("../outside.JPEG"),
        entry("/etc/passwd"),
        entry(f"{TOP}/test/images/test_1.JPEG", stat.S_IFLNK | 0o777),
    ],
    ids=["by its folder", "by dots", "absolute", "a link"],
)
def test_an_entry_that_leads_out_of_the_archive(info, root):
    with zipfile.ZipFile(root / f"{TOP}.zip", "a") as archive:
        archive.writestr(info, "/etc/passwd")
    assert f"its entry {info.filename} is a link or leads out of the archive" in refused(root)


def test_two_entries_of_one_name(root):
    with zipfile.ZipFile(root / f"{TOP}.zip", "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(f"{TOP}/{VAL}", jpeg(1))
    assert "one name" in refused(root)


UNFOLDED = 2**26 + 12345
BOMBS: dict[str, tuple[int, int]] = {  # the form of compression, and the size that the bomb claims
    "an honest one": (zipfile.ZIP_DEFLATED, UNFOLDED),
    "one that claims to be small": (zipfile.ZIP_DEFLATED, 5000),
    "one whose reader knows no measure": (zipfile.ZIP_BZIP2, 5000),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_takes_no_memory(case, root):
    method, claim = BOMBS[case]
    pack(root / f"{TOP}.zip", tiny_files() | {GREY: bytes(UNFOLDED)}, method)
    content = (root / f"{TOP}.zip").read_bytes()
    assert content.count(struct.pack("<L", UNFOLDED)) == 2
    (root / f"{TOP}.zip").write_bytes(content.replace(struct.pack("<L", UNFOLDED), struct.pack("<L", claim)))
    tracemalloc.start()
    try:
        assert f"{TOP}.zip" in refused(root)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def test_an_archive_too_large_is_not_read_to_its_end(root):
    with (root / f"{TOP}.zip").open("r+b") as file:
        file.truncate(2**40)  # takes no room on the disk
    tracemalloc.start()
    try:
        assert "has 1099511627776 bytes, more than it should" in refused(root)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def test_another_archive_than_the_pinned_one(root):
    add_pin(root, "tiny-imagenet", "0" * 64, "https://example.org")
    text = refused(root)
    assert "has changed since it was fetched" in text
    assert "checksums.toml" in text


# --- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet8", "resnet8+tofd", "resnet8+heads", "wide_resnet18"])
def test_networks_take_its_images_and_classes(name):
    spec = resolve("tiny-imagenet")
    shapes = network_shapes(name, spec.num_classes, spec.image_size)
    assert shapes.logits.shape == (1, 200)
    assert [tuple(stage.shape[-2:]) for stage in shapes.stages] == [(64, 64), (32, 32), (16, 16), (8, 8)][
        : len(shapes.stages)
    ]
    assert all(logits.shape == (1, 200) for logits, _ in shapes.branches)
    assert bool(shapes.branches) == ("+" in name)
    found = output_shapes(build_student(name, spec, 1), spec.image_size)
    assert torch.isfinite(found.logits).all()
    assert found.logits.shape == shapes.logits.shape
    assert [x.shape for x in found.stages] == [x.shape for x in shapes.stages]
    assert [e.shape for _, e in found.branches] == [e.shape for _, e in shapes.branches]
