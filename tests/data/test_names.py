import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdtable.data import DataSpec, contents, load, resolve
from kdtable.data.formats import npz
from kdtable.data.spec import check_batch_size
from kdtable.errors import BadRequest


def arrays(**changes) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    good = {
        "train_images": random.integers(0, 256, (7, 3, 8, 8), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2, 0], dtype=np.uint8),
        "test_images": random.integers(0, 256, (3, 3, 8, 8), dtype=np.uint8),
        "test_labels": np.array([3, 1, 2], dtype=np.uint8),
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def write(path: Path, **changes) -> Path:
    np.savez(path, **arrays(**changes))
    return path


def test_naming_a_set_imports_neither_torch_nor_numpy():
    code = (
        "import sys, kdtable.data as d; d.resolve('cifar100'); assert 'Batch' in d.__all__; "
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_package_exports_what_it_lists_and_nothing_else():
    import kdtable.data

    for name in kdtable.data.__all__:
        assert getattr(kdtable.data, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = kdtable.data.nothing


@pytest.mark.parametrize("name", ["digits", "digits-few"])
def test_digits_of_half_the_size(name):
    spec, usual = resolve(name, 16), resolve(name)
    images = load(spec, Path())
    assert images.train_images.shape == (spec.train_count, 3, 16, 16)
    assert (spec.key, spec.name) == (f"{name}-16", name)
    assert resolve(name, 32) == usual
    assert spec.identity() == usual.identity() | {"image_size": 16, "std": [0.3184] * 3, "mean": [0.3053] * 3}
    pixels = load(resolve("digits", 16), Path()).train_images / 255
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (0.3053, 0.3184)
    with pytest.raises(BadRequest, match=f"'{name}' has images of 16 or 32 pixels, not 24: use --image-size 16 or 32"):
        resolve(name, 24)


def test_built_in_sets():
    cifar = resolve("cifar100")
    assert (cifar.num_classes, cifar.train_count, cifar.test_count, cifar.image_size) == (
        100,
        50000,
        10000,
        32,
    )
    assert cifar.mean == (0.5071, 0.4867, 0.4408)
    assert cifar.std == (0.2675, 0.2565, 0.2761)
    assert resolve("cifar10").mean == (0.4914, 0.4822, 0.4465)
    assert resolve("cifar10").std == (0.247, 0.243, 0.261)
    assert resolve("cifar10").flip
    assert not resolve("digits").flip
    assert cifar.identity() == {
        "kind": "cifar100",
        "num_classes": 100,
        "mean": [0.5071, 0.4867, 0.4408],
        "std": [0.2675, 0.2565, 0.2761],
        "flip": True,
    }


@pytest.mark.parametrize("name", ["cifar101", "svhn", "zip:here", ""])
def test_an_unknown_name_is_refused_with_what_there_is(name):
    with pytest.raises(
        BadRequest, match=f"unknown data set '{name}'(; did you mean cifar10, cifar100|: 'kdtable list datasets' shows)"
    ):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npz:", "lacks a path: write npz:PATH"),
        ("folder:", "lacks a path: write folder:PATH"),
        ("npz:nowhere.npz", "nowhere.npz: no such npz file"),
        ("folder:nowhere", "nowhere: no such folder of images"),
    ],
)
def test_a_missing_file_is_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message):
        resolve(name)


def test_a_folder_is_no_npz_file(tmp_path):
    with pytest.raises(BadRequest, match="no such npz file"):
        resolve(f"npz:{tmp_path}")


def test_npz_defaults_come_from_the_training_images(tmp_path):
    spec = resolve(f"npz:{write(tmp_path / 'my.set.npz')}")
    pixels = arrays()["train_images"].astype(np.float64) / 255
    np.testing.assert_allclose(spec.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(spec.std, pixels.std((0, 2, 3)), rtol=1e-12)
    assert spec.num_classes == 4  # the largest label is one of the test part
    assert (spec.train_count, spec.test_count, spec.image_size, spec.flip) == (7, 3, 8, True)
    assert spec.name == "my.set"
    assert spec.key == f"my_set-{spec.sha256[:8]}"
    assert spec.path == (tmp_path / "my.set.npz").resolve()


def test_npz_settings_are_taken(tmp_path):
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    spec = resolve(f"npz:{write(tmp_path / 'a.npz', num_classes=np.array(9), mean=mean, std=std)}")
    assert (spec.num_classes, spec.mean, spec.std) == (9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    only_mean = resolve(f"npz:{write(tmp_path / 'b.npz', mean=mean)}")
    assert only_mean.mean == (0.1, 0.2, 0.3)
    assert only_mean.std == resolve(f"npz:{write(tmp_path / 'c.npz')}").std


def test_the_meaning_is_of_the_content_not_of_the_place(tmp_path):
    (tmp_path / "b").mkdir()
    first = resolve(f"npz:{write(tmp_path / 'a.npz')}")
    moved = resolve(f"npz:{(tmp_path / 'a.npz').rename(tmp_path / 'b' / 'other.npz')}")
    assert first.identity() == moved.identity()
    assert first.key != moved.key
    changed = resolve(f"npz:{write(tmp_path / 'a.npz', test_labels=np.array([3, 2, 2]))}")
    assert changed.identity() != first.identity()


def test_every_setting_of_training_enters_the_meaning():
    spec = resolve("cifar10")
    for changes in [
        {"num_classes": 11},
        {"mean": (0.0, 0.0, 0.0)},
        {"std": (1.0, 1.0, 1.0)},
        {"flip": False},
    ]:
        assert dataclasses.replace(spec, **changes).identity() != spec.identity()
    assert dataclasses.replace(spec, path=Path("elsewhere"), key="x", name="y").identity() == spec.identity()


def test_a_file_is_decoded_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(npz, "channel_statistics", lambda images: decoded.append(1) or ((0.5,) * 3, (0.5,) * 3))
    path = write(tmp_path / "a.npz")
    resolve(f"npz:{path}")
    resolve(f"npz:{path}")
    assert len(decoded) == 1
    write(path, num_classes=np.array(50))
    assert resolve(f"npz:{path}").num_classes == 50


def test_images_are_read_as_people_have_them(tmp_path):
    plain = arrays(num_classes=np.array(4))
    grey = {name: plain[name][:, :1] for name in ("train_images", "test_images")}
    expected = {name: np.repeat(images, 3, axis=1) for name, images in grey.items()}

    def read(**changes):
        spec = resolve(f"npz:{write(tmp_path / 'a.npz', num_classes=np.array(4), **changes)}")
        loaded = load(spec, tmp_path)
        return {name: getattr(loaded, name).numpy() for name in plain if name != "num_classes"}, spec.notes

    def same(found, wanted):
        return all(np.array_equal(found[name], wanted[name]) and found[name].dtype == np.uint8 for name in wanted)

    content, notes = read(**{name: plain[name].transpose(0, 2, 3, 1) for name in grey})
    assert same(content, {name: plain[name] for name in grey})
    assert notes == (
        "train_images of shape (7, 8, 8, 3) of uint8 is read as (7, 3, 8, 8) of uint8",
        "test_images of shape (3, 8, 8, 3) of uint8 is read as (3, 3, 8, 8) of uint8",
    )
    for change in (
        lambda images: images,
        lambda images: images[:, 0],
        lambda images: images.transpose(0, 2, 3, 1),
        lambda images: images[:, 0] / 255,
        lambda images: (images / 255).astype(np.float32),
    ):
        content, notes = read(**{name: change(images) for name, images in grey.items()})
        assert same(content, expected)
        assert len(notes) == 2
    content, notes = read(train_labels=plain["train_labels"][:, None])
    assert content["train_labels"].tolist() == plain["train_labels"].tolist()
    assert notes == ()


@pytest.mark.parametrize(
    ("train", "test", "note"),
    [
        ([1, 2, 3, 1, 2, 3, 1], [3, 1, 2], "labels run to 3, which makes 4 classes; no training image is of class 0"),
        (
            [3, 7, 7, 3, 7, 3, 9],
            [3, 7, 9],
            "labels run to 9, which makes 10 classes; no training image is of class 0, 1, 2 and 4 more",
        ),
        (
            [0, 1, 2, 0, 1, 2, 0],
            [4, 1, 2],
            "labels run to 4, which makes 5 classes; no training image is of class 3, 4",
        ),
    ],
)
def test_classes_that_nobody_trains_on_are_told(train, test, note, tmp_path):
    path = write(tmp_path / "a.npz", train_labels=np.array(train), test_labels=np.array(test))
    assert resolve(f"npz:{path}").notes == (note,)
    path = write(tmp_path / "a.npz", train_labels=np.array(train), num_classes=np.array(10))
    assert resolve(f"npz:{path}").notes == ()  # the number was given


NOT_UINT8 = np.full((7, 3, 8, 8), 1.5, dtype=np.float32)
BAD_ARRAYS = {
    "train_images: has no array train_images": {"train_images": None},
    "two missing: has no array train_labels, test_labels": {"train_labels": None, "test_labels": None},
    "type: train_images has shape .7, 3, 8, 8. of float32; expected": {"train_images": NOT_UINT8},
    "integers: train_images has shape .7, 3, 8, 8. of int64; expected": {"train_images": np.ones((7, 3, 8, 8), int)},
    "not a number: train_images has shape": {"train_images": np.full((7, 3, 8, 8), np.nan)},
    "channels: test_images has shape": {"test_images": np.zeros((3, 2, 8, 8), dtype=np.uint8)},
    "channels last: train_images has shape": {"train_images": np.zeros((7, 8, 8, 4), dtype=np.uint8)},
    "dimensions: train_images has shape": {"train_images": np.zeros((7, 192), dtype=np.uint8)},
    "not square: train_images has shape": {"train_images": np.zeros((7, 3, 8, 9), dtype=np.uint8)},
    "empty: test_images has shape": {"test_images": np.zeros((0, 3, 8, 8), dtype=np.uint8)},
    "sizes: test_images .* of the size of train_images": {"test_images": np.zeros((3, 3, 9, 9), dtype=np.uint8)},
    "float labels: train_labels has shape .7,. of float64": {"train_labels": np.zeros(7)},
    "length: train_labels has shape .6,. of int64; expected .7,.": {"train_labels": np.zeros(6, dtype=np.int64)},
    "one-hot: test_labels has shape": {"test_labels": np.zeros((3, 4), dtype=np.int64)},
    "negative: train_labels run from -1 to 2": {"train_labels": np.array([0, 1, 2, 0, 1, 2, -1])},
    "too large: test_labels run from 1 to 3; expected 0 to 2": {"num_classes": np.array(3)},
    "float count: num_classes is 10.0": {"num_classes": np.array(10.0)},
    "no class: num_classes is 0": {"num_classes": np.array(0)},
    "counts: num_classes is": {"num_classes": np.array([4, 4])},
    "mean shape: mean is .*expected three numbers": {"mean": np.array([0.5])},
    "mean unit: mean is .*from 0 to 1": {"mean": np.array([125.3, 123.0, 113.9])},
    "nan: mean is": {"mean": np.array([0.5, 0.5, np.nan])},
    "text: std is": {"std": np.array(["a", "b", "c"])},
    "zero std: std is .*above zero": {"std": np.array([0.5, 0.0, 0.5])},
    "constant channel: std is .*constant": {"train_images": np.ones((7, 3, 8, 8), dtype=np.uint8)},
    "pickled: array train_labels cannot be read": {"train_labels": np.array([None] * 7)},
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_named(case, tmp_path):
    path = write(tmp_path / "bad.npz", **BAD_ARRAYS[case])
    message = case.partition(": ")[2]
    with pytest.raises(BadRequest, match=rf"bad\.npz: .*{message}"):
        resolve(f"npz:{path}")


def test_damaged_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[200:260] = bytes(60)
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (b"", b"not a zip file", whole[:-100], (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(BadRequest, match=r"bad\.npz: not an npz file, or cut short"):
            resolve(f"npz:{tmp_path / 'bad.npz'}")
    (tmp_path / "bad.npz").write_bytes(damaged)
    with pytest.raises(BadRequest, match=r"bad\.npz: array train_images cannot be read"):
        resolve(f"npz:{tmp_path / 'bad.npz'}")


def test_a_set_too_large_for_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "large.npz"
    np.savez_compressed(path, **arrays(train_images=np.zeros((7, 3, 64, 64), dtype=np.uint8)))
    assert path.stat().st_size < 20000
    monkeypatch.setattr(contents, "MAX_BYTES", 20000)
    with pytest.raises(BadRequest, match=r"large\.npz: .* once decoded"):
        resolve(f"npz:{path}")


def test_a_training_set_must_fill_a_batch():
    spec: DataSpec = resolve("digits")
    check_batch_size(spec, 1348)
    with pytest.raises(BadRequest, match="data set digits has 1348 training images, fewer than one batch of 1349"):
        check_batch_size(spec, 1349)
    with pytest.raises(BadRequest, match="--batch-size"):
        check_batch_size(spec, 0)
