"""Map-style data sets, and those of Hugging Face, read into arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdtable.data import load, mapped, resolve
from kdtable.data.formats import hf
from kdtable.errors import BadRequest
from tests.data.test_folder import picture

PARTS = ([(picture(seed), seed % 2) for seed in range(4)], [(picture(seed), seed % 2) for seed in (8, 9)])


def array(seed: int = 0) -> np.ndarray:
    return np.asarray(picture(seed))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (picture(0), array()),
        (array(), array()),
        (array().transpose(2, 0, 1), array()),
        (torch.from_numpy(array().transpose(2, 0, 1).copy()), array()),
        (torch.from_numpy(array().transpose(2, 0, 1) / np.float32(255)), array()),
        (array()[:, :, 0], np.stack([array()[:, :, 0]] * 3, axis=2)),
        (torch.from_numpy(array()[:, :, 0].copy())[None], np.stack([array()[:, :, 0]] * 3, axis=2)),
        (picture(0).quantize(4), np.asarray(picture(0).quantize(4).convert("RGB"))),
    ],
)
def test_kinds_of_images(image: Any, expected: np.ndarray) -> None:
    arrays, resized = mapped.read_arrays("mine", [(image, 0)], [(image, torch.tensor(1))])
    np.testing.assert_array_equal(arrays["train_images"], expected.transpose(2, 0, 1)[None])
    assert (arrays["test_labels"].tolist(), resized) == ([1], 0)


def test_a_data_set_of_torchvision() -> None:
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor

    train, test = (FakeData(count, (3, 8, 8), 5, ToTensor(), random_offset=count) for count in (6, 3))
    arrays, _ = mapped.read_arrays("fake", train, test)
    assert arrays["train_images"].shape == (6, 3, 8, 8)
    expected = (train[2][0] * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(arrays["train_images"][2], expected)


def test_several_sizes() -> None:
    train = [*PARTS[0], (picture(3, (12, 16)), 1)]
    arrays, resized = mapped.read_arrays("mine", train, PARTS[1], 8)
    assert (arrays["train_images"].shape, resized) == ((5, 3, 8, 8), 1)
    with pytest.raises(BadRequest, match=r"mine, image 4: 12 x 16 pixels; expected 8 x 8, .*--image-size N"):
        mapped.read_arrays("mine", train, PARTS[1])


class Changing:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8), 0


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "has 0 training and 2 test images"),
        (Changing(), "differs from one reading to the next: leave random transforms out"),
        ([picture(0)], "the item is a Image; expected \\(image, label\\)"),
        ([(picture(0), "cat")], "its label is 'cat'; expected an integer from 0"),
        ([(picture(0), -1)], "its label is -1; expected"),
        ([(picture(0), [0, 1])], "its label is .0, 1.; expected"),
        ([(array() * 2.0, 0)], "has shape .8, 8, 3. of float64; expected"),
        ([(np.zeros((2, 8, 8, 3), np.uint8), 0)], "has shape .2, 8, 8, 3. of uint8; expected"),
        ([(picture(0, (9, 8)), 0)], "9 x 8 pixels; expected square images"),
        ([(Image.new("I;16", (8, 8)), 0)], "pixels of more than 8 bits"),
    ],
)
def test_what_is_no_set_is_refused(train: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        mapped.read_arrays("mine", train, PARTS[1])


# --- Hugging Face ----------------------------------------------------------------------------------------------------

Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Writes a data set with ``save_to_disk``."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def write(name: str = "pets", test: str = "test", **columns: Any) -> Path:
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), **columns}
        kinds = {column: kind for column, kind in kinds.items() if kind is not None}

        def part(items: list[tuple[Image.Image, int]]) -> Any:
            rows = {c: [i[0] if isinstance(k, datasets.Image) else i[1] for i in items] for c, k in kinds.items()}
            return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))

        whole = datasets.DatasetDict({"train": part(PARTS[0]), test: part(PARTS[1])})
        whole.save_to_disk(tmp_path / name)
        hf.read.cache_clear()
        return tmp_path / name

    return write


def test_a_set_that_was_saved(saved: Saved, tmp_path: Path) -> None:
    folder = saved()
    spec = resolve(f"hf:{folder}")
    content = load(spec, tmp_path)
    assert (spec.name, spec.kind, spec.path) == ("pets", "hf", folder)
    assert (spec.num_classes, spec.train_count, spec.test_count, spec.image_size) == (2, 4, 2, 8)
    for got, (image, _) in zip(content.train_images, PARTS[0], strict=True):
        np.testing.assert_array_equal(got.numpy(), np.asarray(image).transpose(2, 0, 1))
    assert content.train_labels.tolist() == [0, 1, 0, 1]


def test_its_identity_is_of_its_content(saved: Saved) -> None:
    first, second = resolve(f"hf:{saved()}"), resolve(f"hf:{saved('elsewhere', 'validation')}")
    assert first.identity() == second.identity()
    assert "its part 'validation' is the test set" in second.notes
    assert first.notes == ()


def test_images_of_a_set_are_scaled_as_told(saved: Saved) -> None:
    spec = resolve(f"hf:{saved()}", image_size=16)
    assert (spec.image_size, spec.identity()["image_size"]) == (16, 16)
    assert "6 images of other sizes scaled and cropped to 16 x 16 pixels" in spec.notes


def test_a_column_of_labels_is_chosen(saved: Saved) -> None:
    datasets = pytest.importorskip("datasets")
    many = {"label": None, "fine": datasets.ClassLabel(num_classes=7), "coarse": datasets.ClassLabel(num_classes=3)}
    folder = saved(**many)
    assert resolve(f"hf:{folder}#coarse").num_classes == 3
    assert resolve(f"hf:{folder}#coarse").name == "pets"
    with pytest.raises(BadRequest, match=r"which column of fine and coarse has the labels\? Write hf:.*pets#COLUMN"):
        resolve(f"hf:{folder}")
    with pytest.raises(BadRequest, match="has no column colour; there are image, fine, coarse"):
        resolve(f"hf:{folder}#colour")


def test_sets_that_cannot_be_used(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has the parts train, extra; expected train, and test or validation"):
        resolve(f"hf:{saved(test='extra')}")
    with pytest.raises(BadRequest, match="has 0 columns of images; expected one"):
        resolve(f"hf:{saved('none', image=None)}")
    with pytest.raises(BadRequest, match="is one part of a data set; expected a saved DatasetDict"):
        resolve(f"hf:{saved('part') / 'train'}")
    with pytest.raises(BadRequest, match=r"data set hf:.* cannot be loaded"):
        resolve(f"hf:{tmp_path}")
    with pytest.raises(BadRequest, match="lacks a path: write hf:"):
        resolve("hf:")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "find_spec", lambda name: None)
    hf.read.cache_clear()
    with pytest.raises(BadRequest, match=r"pip install 'kdtable\[hf\]'"):
        resolve("hf:mnist")
