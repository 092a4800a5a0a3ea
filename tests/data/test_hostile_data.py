"""Damaged and forged data sets: the right images, or a refusal before they take memory."""

import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdtable.data import contents, load, resolve
from kdtable.data.formats import npz
from kdtable.errors import BadRequest
from tests.cli.command import write_images
from tests.data.photos import png
from tests.data.test_folder import make, picture
from tests.tensor_files import MUTATIONS, mutations


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_images(tmp_path / "tiny.npz", train=6, test=4)
    return tmp_path / "tiny.npz"


def arrays(path: Path) -> list[bytes]:
    npz._read.cache_clear()
    content = load(resolve(f"npz:{path}"), path)
    return [
        part.numpy().tobytes()
        for part in (content.train_images, content.train_labels, content.test_images, content.test_labels)
    ]


@MUTATIONS
@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_npz_holds_the_same_images_or_is_refused(compressed: bool, count: int, path: Path) -> None:
    if compressed:
        with np.load(path) as archive:
            np.savez_compressed(path, **archive)
    whole, expected = path.read_bytes(), arrays(path)
    refused = 0
    for what, content in mutations(whole, count):
        path.write_bytes(content)
        before = path.read_bytes()
        try:
            found = arrays(path)
        except BadRequest:
            refused += 1
        else:
            assert found == expected, what
        assert path.read_bytes() == before
    assert refused > count / 2


@pytest.mark.slow
def test_every_header_of_an_npz_is_looked_at(path: Path) -> None:
    """The bytes of the array headers and of the archive's own, one flipped bit each."""
    whole, expected = path.read_bytes(), arrays(path)
    heads = [
        place
        for entry in zipfile.ZipFile(path).infolist()
        for place in range(entry.header_offset, entry.header_offset + 200)
    ]
    refused = 0
    for place in {*heads, *range(len(whole) - 450, len(whole))}:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            assert arrays(path) == expected, place
        except BadRequest:
            refused += 1
    assert refused > 500


def header(shape: str, descr: str = "|u1", fortran: bool = False) -> bytes:
    """The head of an npy file that claims a shape."""
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def with_entry(path: Path, name: str, content: bytes, *, method: int = zipfile.ZIP_STORED) -> None:
    """Replace an entry of an npz."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()} | {name: content}
    with zipfile.ZipFile(path, "w", method) as archive:
        for entry, value in entries.items():
            archive.writestr(entry, value)


def refused_cheaply(path: Path, match: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match=match) as caught:
            arrays(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 20 * 2**20


def test_the_forger_makes_good_headers_too(path: Path) -> None:
    images = np.arange(6 * 3 * 8 * 8, dtype=np.uint8).reshape(6, 3, 8, 8)
    for fortran in (False, True):
        with_entry(
            path, "train_images.npy", header("(6, 3, 8, 8)", fortran=fortran) + images.tobytes("F" if fortran else "C")
        )
        with_entry(path, "test_images.npy", header("(4, 3, 8, 8)") + images[:4].tobytes())
        assert arrays(path)[0] == images.tobytes()


SHAPES = {
    "a terabyte": "(1099511627776, 3, 32, 32)",
    "a product beyond all measure": "(4611686018427387904, 4611686018427387904, 4)",
    "nothing of a terabyte": "(0, 1099511627776)",
    "more dimensions than numpy has": f"({'1, ' * 61}6, 3, 32, 32)",
    "one row more": "(7, 3, 32, 32)",
    "one row less": "(5, 3, 32, 32)",
    "a negative shape": "(-6, 3, -32, 32)",
    "no shape": "5",
    "a shape of texts": "('a',)",
    "a shape of code": "(__import__('os').getpid(),)",
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_shape_that_is_not_there_is_refused_before_it_takes_memory(case: str, path: Path) -> None:
    with_entry(path, "train_images.npy", header(SHAPES[case]) + bytes(6 * 3 * 32 * 32))
    refused_cheaply(path, "train_images")


@pytest.mark.parametrize("descr", ["|O", "|V0", "<U3", "|S0", ">f16", "no type"])
def test_elements_that_are_no_pixels_are_refused(descr: str, path: Path) -> None:
    with_entry(path, "train_images.npy", header("(6, 3, 32, 32)", descr) + bytes(6 * 3 * 32 * 32))
    refused_cheaply(path, "train_images")


@pytest.mark.parametrize(("shape", "descr"), [("(6, 3, 32, 32)", "|V0"), (f"(0, {10**30}, 3, 3)", "|u1")])
def test_arrays_that_need_no_bytes_are_refused(shape: str, descr: str, path: Path) -> None:
    with_entry(path, "train_images.npy", header(shape, descr))
    refused_cheaply(path, "train_images (cannot be read|has shape)")


def test_a_compressed_bomb_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of what it unfolds to; the limit is lowered for the test."""
    monkeypatch.setattr(contents, "MAX_BYTES", 2**20)
    bomb = header("(16, 3, 1024, 1024)") + bytes(16 * 3 * 1024 * 1024)
    with_entry(path, "train_images.npy", bomb, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    npz._read.cache_clear()
    with pytest.raises(BadRequest, match="once decoded"):
        resolve(f"npz:{path}")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_that_claims_to_be_small_is_read_no_further_than_its_claim(method: int, path: Path) -> None:
    whole = header("(6, 3, 32, 32)") + bytes(6 * 3 * 32 * 32)
    with_entry(path, "train_images.npy", whole + bytes(50 * 2**20), method=method)
    content = path.read_bytes()
    claimed = struct.pack("<L", len(whole) + 50 * 2**20)
    assert content.count(claimed) == 2
    path.write_bytes(content.replace(claimed, struct.pack("<L", len(whole))))
    refused_cheaply(path, "train_images|neither stored nor deflated")


def test_an_entry_that_numpy_would_prefer_is_not_read_instead(path: Path) -> None:
    """A name without ``.npy`` hides the array from numpy's own reader, and its size from a check."""
    expected = arrays(path)
    with_entry(path, "train_images", b"something else")
    assert arrays(path) == expected


def test_a_directory_that_would_take_too_much_memory_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAX_DIRECTORY", 50_000)
    assert arrays(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x" * 50_000, b"")
    refused_cheaply(path, r"its directory claims \d+ bytes")


def test_two_entries_of_one_name_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("train_images.npy", b"")
    refused_cheaply(path, "one name")


def test_classes_beyond_all_memory_are_refused(path: Path) -> None:
    for count in (npz.MOST_CLASSES + 1, 2**62):
        write_images(path, {"num_classes": np.array(count)}, train=6, test=4)
        refused_cheaply(path, "classes, and more than")
    write_images(path, {"train_labels": np.array([2**62] * 6), "num_classes": None}, train=6, test=4)
    refused_cheaply(path, "classes, and more than")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [20_000, 12_000])
def test_an_image_that_claims_to_be_huge_is_refused_before_it_takes_memory(side: int, tmp_path: Path) -> None:
    root = make(tmp_path)
    for place in ("train/a/0.png", "train/b/0.png"):  # the first image of all, and one of the others
        before = (root / place).read_bytes()
        (root / place).write_bytes(png(side, side))
        tracemalloc.start()
        try:
            with pytest.raises(BadRequest, match=r"0\.png: "):
                resolve(f"folder:{root}")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 50 * 2**20
        (root / place).write_bytes(before)


def test_a_file_of_another_format_is_no_image_whatever_its_name(tmp_path: Path) -> None:
    """Pillow starts Ghostscript for EPS."""
    root = make(tmp_path)
    for form in ("EPS", "PDF", "GIF", "ICO", "SGI", "PCX"):
        buffer = io.BytesIO()
        picture(0).save(buffer, form)
        (root / "train/b/0.png").write_bytes(buffer.getvalue())
        with pytest.raises(BadRequest, match=r"train/b/0\.png: not an image that can be read"):
            resolve(f"folder:{root}")


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    root = make(tmp_path)
    with (root / "train/b/0.png").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(BadRequest, match="has 1099511627776 bytes, too many for an image"):
        resolve(f"folder:{root}")


def test_a_pipe_in_the_place_of_an_image_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path)
    os.mkfifo(root / "train/a/pipe.png")
    with pytest.raises(BadRequest, match=r"train/a/pipe\.png: is not a file"):
        resolve(f"folder:{root}")


def test_a_device_in_the_place_of_an_image_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "train/a/endless.png").symlink_to("/dev/zero")
    with pytest.raises(BadRequest, match=r"train/a/endless\.png: is not a file"):
        resolve(f"folder:{root}")


@MUTATIONS
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP"])
def test_damaged_images_are_named(form: str, count: int, tmp_path: Path) -> None:
    root = make(tmp_path)
    image = root / "train/b/0.png"
    picture(0).save(image, form)
    whole = image.read_bytes()
    expected = resolve(f"folder:{root}").identity()
    refused = 0
    for what, content in mutations(whole, count):
        image.write_bytes(content)
        os.utime(image, ns=(refused + 1, refused + 1))
        try:
            found = resolve(f"folder:{root}").identity()
        except BadRequest as error:
            refused += 1
            text = str(error)
        else:
            text = "train/b/0.png"
            assert found != expected, what  # another content is another data set
        assert "train/b/0.png" in text
    assert refused > (count / 2 if form == "PNG" else 0)  # the others have no checksums


def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    root = make(tmp_path)
    picture(5).save(root / "train/a/x.png")
    os.rename(os.fsencode(root / "train/a/x.png"), os.fsencode(root) + b"/train/a/\xff\x1b[31m.png")
    assert resolve(f"folder:{root}").train_count == 4
