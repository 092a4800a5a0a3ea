"""``kdtable probe``: a linear classifier on a stored student's trunk, on another data set."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtable.checkpoints import student
from kdtable.checkpoints.student import Origin
from kdtable.export.probing import probe
from kdtable.training.build import build_student
from tests import engine
from tests.cli.command import Call

#: Of the student's images, and of the other set's.
OWN, OTHER = 8, 12


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A student of four classes with random weights."""
    spec = engine.image_set(size=OWN).spec
    network = build_student("resnet8", spec, 1)
    path = tmp_path / "student.safetensors"
    origin = Origin("resnet8", 4, OWN, spec.mean, spec.std, "noise", "0" * 16, {}, [])
    student.save(path, network.state_dict(), origin)
    return path


@pytest.fixture
def other(tmp_path: Path) -> str:
    """Six classes that differ in brightness."""
    images = engine.image_set(train=60, test=30, classes=6, size=OTHER)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "other.npz", **{name: getattr(images, name).numpy() for name in names})
    return f"npz:{tmp_path / 'other.npz'}"


SCALED = ("--image-size", str(OWN))


def test_other_classes_on_scaled_images(stored: Path, other: str, call: Call) -> None:
    before = stored.read_bytes()
    args = ("probe", str(stored), "--data", other, *SCALED, "--epochs", "6", "--batch-size", "12", "--device", "cpu")
    done = call(*args)
    assert (done.code, done.err) == (0, "")
    said = " ".join(done.out.split())
    assert said.startswith("resnet8 of run 00000000, trained on noise: linear-probe top-1 accuracy ")
    assert re.search(r"kNN accuracy [\d.]+ %, on 30 test images of other after 6 epochs \(seed 1, lr 1\)$", said)
    accuracy = float(re.findall(r"top-1 accuracy ([\d.]+) %", said)[0])
    assert accuracy > 2 * 100 / 6
    assert call(*args).out == done.out
    assert stored.read_bytes() == before


def test_the_trunk_is_the_students(stored: Path, other: str) -> None:
    """What a probe finds is a linear classifier of its embeddings: on one image a class, it learns these by heart."""
    found = probe(stored, other, Path(), torch.device("cpu"), epochs=2, batch_size=60, image_size=OWN)
    assert [(record.stage, record.epoch) for record in found.history] == [("main", 1), ("main", 2)]
    assert found.history[0].metrics["knn"] == found.history[1].metrics["knn"]
    assert found.history[1].train_loss < found.history[0].train_loss


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "images of {} are 12 pixels wide, but the student was trained on 8: add --image-size 8 to have them"),
        ((*SCALED, "--epochs", "0"), "a probe takes 1 epoch or more, and a positive learning rate"),
        ((*SCALED, "--lr", "-1"), "a probe takes 1 epoch or more, and a positive learning rate"),
        (("--image-size", "10"), "images of {} are 10 pixels wide, but the student was trained on 8"),
    ],
)
def test_bad_requests(args: tuple[str, ...], sentence: str, stored: Path, other: str, call: Call) -> None:
    done = call("probe", str(stored), "--data", other, "--device", "cpu", *args)
    assert (done.code, done.out) == (2, "")
    (error,) = done.errors
    assert sentence.format(other) in error


def test_it_needs_a_data_set(stored: Path, call: Call) -> None:
    done = call("probe", str(stored))
    assert done.code == 2
    assert "name what to probe the student on: --data NAME" in done.err
