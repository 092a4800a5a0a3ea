"""STL-10: labelled images alone, as torchvision reads them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from kdtable.data import load, resolve
from kdtable.data.sets import ImageSet
from kdtable.errors import BadRequest


def write(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A miniature in the layout of the archive, whose labels count from 1; its checksums are torchvision's now."""
    folder, draw = root / "stl10_binary", np.random.default_rng(0)
    folder.mkdir(parents=True)
    content: dict[str, np.ndarray] = {}
    for part, count in (("train", 3), ("test", 2), ("unlabeled", 1)):
        content[f"{part}_X"] = draw.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        content[f"{part}_y"] = draw.integers(1, 11, count, dtype=np.uint8)
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    (folder / "fold_indices.txt").write_text("0 1\n")
    for name, array in content.items():
        (folder / f"{name}.bin").write_bytes(array.tobytes())

    def entries(*names: str) -> list[list[str]]:
        return [[f"{n}.bin", hashlib.md5((folder / f"{n}.bin").read_bytes()).hexdigest()] for n in names]

    monkeypatch.setattr(datasets.STL10, "train_list", entries("train_X", "train_y", "unlabeled_X"))
    monkeypatch.setattr(datasets.STL10, "test_list", entries("test_X", "test_y"))
    return content


def test_labelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write(tmp_path, monkeypatch)
    images = load(resolve("STL-10"), tmp_path)
    assert isinstance(images, ImageSet)
    # files hold the pixels of an image column by column
    assert np.array_equal(images.train_images.numpy(), content["train_X"].transpose(0, 1, 3, 2))
    assert images.train_labels.tolist() == (content["train_y"].astype(int) - 1).tolist()
    assert images.test_labels.tolist() == (content["test_y"].astype(int) - 1).tolist()
    assert images.spec.image_size == 96


def test_a_damaged_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, monkeypatch)
    monkeypatch.setattr(datasets.STL10, "url", "http://127.0.0.1:9/stl10_binary.tar.gz")
    (tmp_path / "stl10_binary" / "test_y.bin").write_bytes(b"other")
    with pytest.raises(BadRequest, match=r"STL10 is not in .* could not be downloaded"):
        load(resolve("stl10"), tmp_path)
