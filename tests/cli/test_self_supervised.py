"""Students without labels from the command to the table: ``kdtable run --paper moco-cifar``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import engine
from tests.cli.command import Call, Done, runs_in, write_teacher
from tests.faults.forks import Forks

SMALL = ("--paper", "moco-cifar", "--data", "npz:small.npz", "--batch-size", "16", "--device", "cpu")
RUN = ("run", *SMALL, "--pairs", "resnet14:resnet8", "--seeds", "1", "--epochs", "4", "--set", "queue=32")
GRID = (*RUN, "--methods", "vanilla,moco,mgd,seed", "--teacher", "resnet14=resnet14.pth")


@pytest.fixture(scope="module")
def finished(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of a finished grid, and what its command said."""
    folder = tmp_path_factory.mktemp("without-labels")
    images = engine.image_set(train=32, test=16, size=8)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(folder / "small.npz", **{name: getattr(images, name).numpy() for name in names})
    write_teacher(folder / "resnet14.pth")
    return folder, forks.run(folder, *GRID)


@pytest.fixture
def after(finished: tuple[Path, Done], tmp_path: Path) -> Path:
    """The test's folder, as the grid left its own."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_grid_trains_and_prints_its_table(finished: tuple[Path, Done]) -> None:
    folder, done = finished
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "linear-probe top-1 accuracy" in said
    assert "two views of moco-cifar" in said
    assert "Linear probe: 2 epochs, lr 1, on a frozen trunk; the student's trunk has random weights" in said
    assert "pretrain epoch 4/4" in done.err
    assert "main epoch 2/2" in done.err
    assert "test kNN accuracy" in done.err
    runs = runs_in(folder / "results").values()
    assert {run["row"]: run["status"] for run in runs} == dict.fromkeys(("vanilla", "moco", "mgd", "seed"), "done")


def test_tables_show_probes_and_neighbours(after: Path, call: Call) -> None:
    done = call("report", "--metric", "probe,probe-top5,knn", "--format", "json")
    assert (done.code, done.err) == (0, "")
    cells = [cell for table in json.loads(done.out) for cell in table["cells"]]
    shown = {(cell["row"].partition(" ")[0], cell["metric"]): cell["mean"] for cell in cells}
    for row in ("teacher", "student", "moco", "mgd", "seed"):
        for metric in ("probe", "probe-top5", "knn"):
            assert 0 <= shown[row, metric] <= 100, (row, metric)
    runs = {run["row"]: run for run in runs_in(after / "results").values()}
    for row in ("moco", "mgd", "seed"):
        assert shown[row, "knn"] == pytest.approx(100 * float(str(runs[row]["last_knn"])))


def test_nothing_is_trained_twice(after: Path, call: Call) -> None:
    before = runs_in(after / "results")
    done = call(*GRID)
    assert done.code == 0, done.err
    assert runs_in(after / "results") == before


def test_the_store_and_its_views_know_both_stages(after: Path, call: Call) -> None:
    (moco,) = [key for key, run in runs_in(after / "results").items() if run["row"] == "moco"]
    assert call("store", "check").code == 0
    shown = call("show", moco)
    assert shown.code == 0, shown.err
    assert "2 of 2" in shown.out
    assert "infonce" in shown.out
    explained = call("explain", moco)
    assert explained.code == 0, explained.err
    assert "Linear probe, 2 epochs" in explained.out
    assert "Momentum contrast of two views." in explained.out
    probed = call("probe", moco, "--data", "npz:small.npz", "--epochs", "2", "--device", "cpu")
    assert probed.code == 0, probed.err
    assert "linear-probe top-1 accuracy" in probed.out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--set", "queue=40"), "a queue of 40 vectors is no multiple of the batch of 16 images: use --set queue=48"),
        (("--methods", "kd"), "method 'kd' is not one of self-supervised, whose methods are vanilla, moco, mgd, seed"),
        (("--batch-size", "12", "--set", "queue=48"), "a batch of 12 images has no 8 equal parts of two images"),
        (
            ("--paper", "crd", "--methods", "moco"),
            "method 'moco' trains without labels: use it with --paper moco-cifar",
        ),
        (
            ("--paper", "crd", "--methods", "kd", "--set", "views=moco-v2"),
            "views=moco-v2 is for training without labels",
        ),
        (("--teacher-cache", "fp32"), "two views of an image are new in every epoch"),
        (("--set", "probe_steps=2"), "probe_steps takes fractions of the probe's epochs, like 0.6,0.8, not 2"),
    ],
)
def test_bad_requests(
    more: tuple[str, ...], sentence: str, finished: tuple[Path, Done], tmp_path: Path, call: Call
) -> None:
    for name in ("small.npz", "resnet14.pth"):
        shutil.copy(finished[0] / name, tmp_path)
    done = call(*GRID[: GRID.index("--set")], *GRID[GRID.index("--set") + 2 :], "--methods", "moco", *more)
    assert (done.code, done.out) == (2, "")
    (error,) = done.errors
    assert sentence in error
    assert not (tmp_path / "results").exists()


def test_a_teacher_without_batch_norms_gives_no_margins(
    finished: tuple[Path, Done], tmp_path: Path, call: Call
) -> None:
    """In the reading that takes them from the teacher; the plan says so in a sentence."""
    shutil.copy(finished[0] / "small.npz", tmp_path)
    pair = ("--pairs", "ShuffleV2:ShuffleV2", "--methods", "mgd", "--reading", "paper", "--dry-run")
    done = call("run", *SMALL, "--seeds", "1", "--epochs", "4", "--set", "queue=32", *pair)
    assert "batch norm" in " ".join((done.out + done.err).split())
