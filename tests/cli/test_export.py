"""``kdtable export``: each file is loaded as its readers load it, and gives the student's logits."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdtable import models
from kdtable.checkpoints import student
from tests.cli.command import SMALL, Call, assert_refused, runs_in, write_images

CELL = "tiny:kd:resnet14:resnet8"


def run_of(folder: Path, row: str = "kd", seed: int = 1) -> str:
    found = [run for run in runs_in(folder / "results").values() if (run["row"], run["seed"]) == (row, seed)]
    (run,) = [run for run in found if run["student"] == "resnet8"]
    return str(run["id"])


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


def logits(folder: Path, run: str, given: Tensor) -> Tensor:
    """What the store's own student says."""
    tensors, origin = student.load(folder / "results" / "runs" / run / "student.safetensors")
    network = models.build(origin.network, origin.num_classes, mean=origin.mean, std=origin.std)
    network.load_state_dict(tensors)
    with torch.no_grad():
        found: Tensor = network.eval()(given).logits
    return found


def test_onnx_gives_the_students_logits_for_any_batch(after_grid: Path, call: Call) -> None:
    run = run_of(after_grid)
    done = call("export", run[:8], "-o", "out/student.onnx")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"out/student.onnx: the student of run {run}; out/student.onnx.md describes it\n"
    session = onnxruntime.InferenceSession(after_grid / "out" / "student.onnx")
    assert [output.name for output in session.get_outputs()] == ["logits"]
    for count in (1, 2, 7):
        (found,) = session.run(None, {"images": images(count).numpy()})
        expected = logits(after_grid, run, images(count)).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    # without its normalisation it would say something else
    bare = logits(after_grid, run, 0.1 + 0.2 * images(2)).numpy()
    assert np.abs(session.run(None, {"images": images(2).numpy()})[0] - bare).max() > 1e-2


def test_weights_are_the_stores(after_grid: Path, call: Call) -> None:
    run = run_of(after_grid, "crd", 2)
    expected, _ = student.load(after_grid / "results" / "runs" / run / "student.safetensors")
    for name in ("student.safetensors", "student.pt"):
        assert call("export", run, "-o", name).code == 0
    found = load_file(after_grid / "student.safetensors"), torch.load(after_grid / "student.pt", weights_only=True)
    for tensors in found:
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], value) for key, value in expected.items())


def test_an_exported_student_can_teach(after_grid: Path, call: Call) -> None:
    assert call("export", run_of(after_grid), "-o", "mine.safetensors").code == 0
    words = ("run", "--pairs", "resnet8:resnet8", "--methods", "kd", "--seeds", "1", "--epochs", "1", *SMALL)
    done = call(*words, "--teacher", "resnet8=mine.safetensors")
    assert done.code == 0, done.err


def test_a_teacher_of_other_data_is_told_of(after_grid: Path, call: Call) -> None:
    """A kdtable file says what it was trained on; its classes may mean other things."""
    assert call("export", run_of(after_grid), "-o", "mine.safetensors").code == 0
    write_images(after_grid / "other.npz", test=12)
    words = ("run", "--pairs", "resnet8:resnet8", "--methods", "kd", "--seeds", "1", "--epochs", "1", *SMALL)
    given = ("--data", "npz:other.npz", "--teacher", "resnet8=mine.safetensors")
    done = call(*words, *given)
    said = "mine.safetensors was trained on tiny-"
    assert (done.code, said in done.err) == (0, True), done.err
    assert "The teacher was trained on another data set, tiny-" in " ".join(done.out.split())
    assert said in call("check-teachers", *given, "--device", "cpu").err


def test_the_card_says_what_it_is(after_grid: Path, call: Call) -> None:
    run = run_of(after_grid)
    for suffix, normalised in (("onnx", "part of this file"), ("pt", "not part of the weights")):
        assert call("export", run, "-o", f"student.{suffix}").code == 0
        card = (after_grid / f"student.{suffix}.md").read_text()
        for part in (
            "# resnet8 on tiny-",
            "resnet8, 77,652 parameters",
            "4 classes",
            "(N, 3, 32, 32)",
            f"- Normalisation, {normalised}",
            f"run {run}",
            "    kdtable run --pairs resnet14:resnet8 --methods kd --seeds 1,",
            "- network: resnet14",
            "top-1 accuracy",
            "agreement with the teacher",
            "- Licence: not known",
            "source: ",
        ):
            assert part in card, part


def test_requests_that_cannot_be_met(after_grid: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(after_grid)
    assert_refused(call("export", run, "-o", "student.h5"), "unknown format of a student '.h5'", ".onnx")
    assert_refused(call("export", "0000", "-o", "student.pt"), "unknown run '0000': use one of")
    assert_refused(call("export", CELL, "-o", "student.pt"), f"{CELL} has 2 runs, and one is needed", run)
    words = ("run", "--pairs", "resnet14:resnet8", "--methods", "kd", "--seeds", "9,", "--epochs", "1", *SMALL)
    assert call(*words, "--keep", "none").code == 0
    none = run_of(after_grid, "kd", 9)
    assert_refused(call("export", none, "-o", "student.pt"), f"the student of run {none} was not kept")
    with monkeypatch.context() as patched:
        patched.setattr("kdtable.export.files.find_spec", lambda name: None)
        assert_refused(call("export", run, "-o", "student.onnx"), "ONNX needs onnx and onnxruntime", "kdtable[onnx]")
    assert not list(after_grid.glob("student*"))
    assert not list(after_grid.glob(".student*"))


def test_a_file_that_cannot_be_written_stays_as_it_was(after_grid: Path, call: Call) -> None:
    run = run_of(after_grid)
    (after_grid / "folder.pt").mkdir()
    (after_grid / "old.pt").write_bytes(b"old")
    done = call("export", run, "-o", "folder.pt")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("kdtable: folder.pt cannot be used")
    (after_grid / "results" / "runs" / run / "student.safetensors").write_bytes(b"damaged")
    done = call("export", run, "-o", "old.pt")
    assert (done.code, done.out) == (1, "")
    assert "student.safetensors" in done.err
    assert "'kdtable store check' says more" in done.err
    assert (after_grid / "old.pt").read_bytes() == b"old"
