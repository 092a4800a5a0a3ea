import hashlib
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from kdtable.data import load, resolve
from kdtable.data.contents import channel_statistics
from kdtable.errors import BadRequest

SHARED = Path(__file__).parents[2].parent / "shared"
UNREACHABLE = "https://127.0.0.1:9/cifar-100-python.tar.gz"


def test_digits_few_are_the_first_ten_of_each_class():
    digits, few = (load(resolve(name), Path("unused")) for name in ("digits", "digits-few"))
    assert torch.bincount(few.train_labels).tolist() == [10] * 10
    assert len(few.train_labels) == few.spec.train_count
    assert torch.equal(few.test_images, digits.test_images)
    label = int(few.train_labels[0])
    wanted = digits.train_images[digits.train_labels == label][:10]
    assert torch.equal(few.train_images[few.train_labels == label], wanted)


def test_digits():
    spec = resolve("digits")
    digits = load(spec, Path("unused"))
    assert digits.train_images.shape == (spec.train_count, 3, 32, 32) == (1348, 3, 32, 32)
    assert digits.test_images.shape == (spec.test_count, 3, 32, 32) == (449, 3, 32, 32)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_images.max() == 255
    assert torch.equal(digits.train_images[:, 0], digits.train_images[:, 2])
    assert set(digits.train_labels.tolist()) == set(digits.test_labels.tolist()) == set(range(10))
    mean, std = channel_statistics(digits.train_images.numpy())
    np.testing.assert_allclose(spec.mean, mean, atol=5e-5)
    np.testing.assert_allclose(spec.std, std, atol=5e-5)


def test_the_digits_stay_what_they_are():
    """As scikit-learn 1.9 gave them; stored results rest on these bytes."""
    digits = load(resolve("digits"), Path("unused"))
    parts = (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels)
    digest = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
    assert digest == "aa0e152598971912f5d6448456e2d45146f92fa46f287577220fc68630019242"
    assert digits.train_labels[:9].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 0]  # every fourth is a test image
    assert digits.test_labels[:3].tolist() == [3, 7, 1]


def test_an_npz_set_is_loaded_as_it_was_resolved(tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8), np.arange(6, dtype=np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:2], test_labels=labels[:2])
    spec = resolve(f"npz:{path}")
    loaded = load(spec, tmp_path)
    assert torch.equal(loaded.train_images, torch.from_numpy(images))
    assert loaded.train_labels.dtype == loaded.test_labels.dtype == torch.int64
    assert loaded.test_labels.tolist() == [0, 1]
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:3], test_labels=labels[:3])
    with pytest.raises(BadRequest, match=r"a\.npz: has changed while it was in use"):
        load(spec, tmp_path)


@pytest.mark.parametrize(
    ("file", "counts"), [("cifar10_excerpt", (5170, 1017, 10)), ("cifar100_excerpt", (486, 916, 100))]
)
def test_the_excerpts(file, counts, tmp_path):
    path = SHARED / "data" / f"{file}.npz"
    if not path.exists():
        pytest.skip(f"{file}.npz is not in shared/data beside the repository")
    spec = resolve(f"npz:{path}")
    loaded = load(spec, tmp_path)
    assert (spec.train_count, spec.test_count, spec.num_classes) == counts
    assert loaded.train_images.shape == (counts[0], 3, 32, 32)
    assert loaded.test_images.shape == (counts[1], 3, 32, 32)
    # a sample of the set whose constants are published
    published = resolve(file.removesuffix("_excerpt"))
    np.testing.assert_allclose(spec.mean, published.mean, atol=0.02)
    np.testing.assert_allclose(spec.std, published.std, atol=0.02)


@pytest.fixture
def miniature(tmp_path, monkeypatch) -> Path:
    """A CIFAR-100 archive of four training and two test images, which torchvision takes for the real one."""
    folder = tmp_path / "made" / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    parts: dict[str, dict[str, object]] = {
        part: {"data": random.integers(0, 256, (count, 3072), dtype=np.uint8), "fine_labels": labels}
        for part, count, labels in [("train", 4, [5, 99, 0, 7]), ("test", 2, [1, 2])]
    }
    parts["meta"] = {"fine_label_names": [str(label) for label in range(100)]}
    md5 = {}
    for part, content in parts.items():
        (folder / part).write_bytes(pickle.dumps(content))
        md5[part] = hashlib.md5((folder / part).read_bytes()).hexdigest()
    archive = tmp_path / "made" / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": md5["meta"]})
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.CIFAR100, "url", UNREACHABLE)
    return archive


@pytest.fixture
def served(miniature, monkeypatch) -> Iterator[Path]:
    """The folder of the miniature, from where torchvision downloads CIFAR-100."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(miniature.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_port}/{miniature.name}"
        monkeypatch.setattr(datasets.CIFAR100, "url", url)
        yield miniature.parent
        server.shutdown()


def check_miniature(root: Path, archive: Path) -> None:
    loaded = load(resolve("cifar100"), root)
    original = pickle.loads((archive.parent / "cifar-100-python" / "train").read_bytes())["data"]
    np.testing.assert_array_equal(loaded.train_images.numpy(), original.reshape(4, 3, 32, 32))
    assert loaded.train_images.is_contiguous()
    assert loaded.train_labels.tolist() == [5, 99, 0, 7]
    assert loaded.test_labels.tolist() == [1, 2]
    assert loaded.test_images.shape == (2, 3, 32, 32)


def left(root: Path) -> list[str]:
    """What is in a folder but for its lock."""
    return sorted(entry.name for entry in root.iterdir() if entry.name != ".cifar-100-python.lock")


def test_a_cifar_archive_put_in_place_is_unpacked(miniature, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    archive = root / miniature.name
    archive.write_bytes(miniature.read_bytes())
    check_miniature(root, miniature)
    assert left(root) == ["cifar-100-python", "cifar-100-python.tar.gz"]
    archive.unlink()
    check_miniature(root, miniature)


def test_cifar_is_downloaded_on_first_use(miniature, served, tmp_path):
    check_miniature(tmp_path / "new" / "root", miniature)
    assert (tmp_path / "new" / "root" / miniature.name).read_bytes() == miniature.read_bytes()


def test_what_a_killed_process_was_unpacking_is_removed(miniature, served, tmp_path):
    begun = tmp_path / "root" / ".cifar-100-python.part" / "cifar-100-python"
    begun.mkdir(parents=True)
    (begun / "train").write_bytes(b"half")
    check_miniature(tmp_path / "root", miniature)
    assert left(tmp_path / "root") == ["cifar-100-python", "cifar-100-python.tar.gz"]


def test_damaged_unpacked_files_are_replaced_from_the_archive(miniature, tmp_path):
    (tmp_path / "root" / "cifar-100-python").mkdir(parents=True)
    (tmp_path / "root" / "cifar-100-python" / "train").write_bytes(b"damaged")
    (tmp_path / "root" / miniature.name).write_bytes(miniature.read_bytes())
    check_miniature(tmp_path / "root", miniature)


def test_offline_it_is_said_where_the_archive_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets.CIFAR100, "url", UNREACHABLE)
    with pytest.raises(BadRequest) as caught:
        load(resolve("cifar100"), tmp_path)
    message = str(caught.value)
    assert "could not be downloaded" in message
    assert f"put cifar-100-python.tar.gz into {tmp_path}" in message
    assert "KDTABLE_DATA or --data-root" in message
    assert left(tmp_path) == []


def test_a_download_with_the_wrong_checksum_is_not_kept(miniature, served, tmp_path):
    miniature.write_bytes(b"something else")
    with pytest.raises(BadRequest, match="could not be downloaded"):
        load(resolve("cifar100"), tmp_path / "root")
    assert left(tmp_path / "root") == []


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half an archive")
    with pytest.raises(BadRequest, match=r"cifar-100-python\.tar\.gz: is damaged .*delete it"):
        load(resolve("cifar100"), tmp_path)


def test_a_data_root_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadRequest, match="CIFAR10 is not in"):
        load(resolve("cifar10"), tmp_path / "file" / "root")
