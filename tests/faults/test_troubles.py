"""What befalls a command from outside is told in one sentence, spoils nothing, and is over when its cause is."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command import (
    SMALL,
    TEACHER,
    Done,
    assert_refused,
    assert_same_numbers,
    epochs_in,
    listing,
    query,
    runs_in,
    write_images,
    write_teacher,
)
from tests.faults.forks import Forks
from tests.faults.grid import LITTLE, Disturbed, Undisturbed, assert_intact
from tests.faults.troubles import DISK, FILLER, fill
from tests.teachers.teacher_site import Reply, open_site

KD = ("run", "--pairs", "resnet14:resnet8", "--methods", "kd", "--epochs", "1", *SMALL, *TEACHER)


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.trained(forks, LITTLE, tmp_path_factory.mktemp("undisturbed"))


def _assert_trouble(done: Done, *parts: str) -> None:
    """The last line on stderr is a sentence that has ``parts``, and the exit code is 1."""
    last = done.errors[-1]
    assert "Traceback" not in done.err, done.err
    assert last.startswith("kdtable: "), done.err
    assert all(part in last for part in parts), done.err
    assert done.code == 1, done.err


def _others_are_as_undisturbed(grid: Disturbed, failed: str) -> None:
    """All runs are done but those of one row; their numbers are those of the undisturbed grid."""
    runs = runs_in(grid.results)
    assert {(run["row"], run["status"]) for run in runs.values() if run["row"] == failed} == {(failed, "failed")}
    done = {run_id for run_id, run in runs.items() if run["row"] != failed}
    assert {runs[run_id]["status"] for run_id in done} == {"done"}
    expected = [row for row in epochs_in(grid.undisturbed.results) if row["id"] in done]
    assert [row for row in epochs_in(grid.results) if row["id"] in done] == expected


# --- a full disk -------------------------------------------------------------------------------------------------


@contextmanager
def _full(folder: Path) -> Iterator[None]:
    """The disk of the folder is full, within the block."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        fill()
        yield
    finally:
        os.chdir(before)
        (folder / FILLER).unlink()


@pytest.mark.parametrize("trouble", DISK)
def test_a_disk_that_becomes_full(undisturbed: Undisturbed, disk: Path, trouble: str) -> None:
    grid = undisturbed.again(disk / "grid")
    done = grid.run(trouble)
    _assert_trouble(done, "results/kdtable.sqlite cannot be written (", " full)", "go on with the same command")
    assert undisturbed.forks.run(grid.folder, "status").code == 0, "reading needs no room"
    (grid.folder / FILLER).unlink()
    assert_intact(grid.results)
    grid.finish()


def test_a_disk_that_is_full_from_the_start(undisturbed: Undisturbed, disk: Path) -> None:
    grid = undisturbed.again(disk / "grid")
    with _full(grid.folder):
        _assert_trouble(grid.run(), "results/kdtable.sqlite cannot be written (", " full)")
    grid.finish()


def test_a_finished_store_on_a_full_disk(undisturbed: Undisturbed, disk: Path) -> None:
    shutil.copytree(undisturbed.folder, disk / "grid")
    with _full(disk / "grid"):
        for words in (("status",), ("report",), ("store", "check"), LITTLE):
            done = undisturbed.forks.run(disk / "grid", *words, KDTABLE_RESULTS="undisturbed")
            assert done.code == 0, done.err


def test_one_students_files_are_too_large(undisturbed: Undisturbed, tmp_path: Path) -> None:
    words = ("run", "--pairs", "resnet14:resnet8,resnet14:resnet20", "--methods", "kd", "--epochs", "2", *SMALL)
    grid = undisturbed.again(tmp_path / "grid")
    call = undisturbed.forks.run
    done = call(grid.folder, *words, *TEACHER, fault="files are limited")
    _assert_trouble(done, "1 run failed")
    assert "FAILED resnet20 kd seed 1: results/runs/" in done.err
    assert "checkpoint.pt" in done.err
    assert "cannot be used (File too large): see to that, and go on with the same command" in done.err
    assert {run["student"]: run["status"] for run in runs_in(grid.results).values()} == {
        "resnet8": "done",
        "resnet20": "failed",
    }
    assert_intact(grid.results)
    assert call(grid.folder, *words, *TEACHER).code == 0
    assert call(grid.folder, *words, *TEACHER, "--results", "undisturbed").code == 0
    assert_same_numbers(grid.results, grid.folder / "undisturbed")
    assert listing(grid.results).keys() == listing(grid.folder / "undisturbed").keys()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_log_that_cannot_be_written(undisturbed: Undisturbed, tmp_path: Path) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    assert grid.run("no log can be written").code == 1, "the table could not be printed"
    grid.assert_as_undisturbed()


def test_a_teacher_for_which_there_is_no_room(forks: Forks, tmp_path: Path, disk: Path) -> None:
    write_teacher(tmp_path / "resnet56.pth", network="resnet56", classes=100)
    with open_site() as site:
        site.answers("/cifar100/resnet56.pth", Reply((tmp_path / "resnet56.pth").read_bytes()))
        words = ("fetch-teachers", "cifar100/resnet56", "--mirror", site.url, "--allow-unverified")
        with _full(disk):
            done = forks.run(disk, *words)
            assert done.code == 1
            assert "Traceback" not in done.err
            assert "No space left on device" in done.errors[0]
        assert forks.run(disk, *words).code == 0
    assert {path.name for path in (disk / "teachers").rglob("*") if path.is_file()} == {
        "resnet56.pth",
        "checksums.toml",
        ".fetch.lock",
        ".checksums.lock",
    }


def test_a_trained_teacher_for_which_there_is_no_room(undisturbed: Undisturbed, disk: Path, tmp_path: Path) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    words = ("train-teachers", "resnet8", "--epochs", "1", *SMALL, "--teachers-dir", str(disk / "teachers"))
    with _full(disk):
        done = undisturbed.forks.run(grid.folder, *words)
    _assert_trouble(
        done, "resnet8 is trained, but ", "/resnet8.safetensors cannot be written (No space left on device)"
    )
    again = undisturbed.forks.run(grid.folder, *words)
    assert again.code == 0, again.err
    assert "epoch" not in again.err
    assert [path.name for path in (disk / "teachers").glob("*/*")] == ["resnet8.safetensors"]


def test_a_cache_for_which_there_is_no_room(undisturbed: Undisturbed, disk: Path) -> None:
    grid = undisturbed.again(disk / "grid")
    done = undisturbed.forks.run(grid.folder, *KD, "--teacher-cache", "fp32", fault="full when a view is kept")
    assert "the teacher's cache cannot be written to (No space left on device)" in done.err
    assert_intact(grid.results)
    (grid.folder / FILLER).unlink()
    for results in ("results", "undisturbed"):
        assert undisturbed.forks.run(grid.folder, *KD, "--teacher-cache", "fp32", "--results", results).code == 0
    assert_same_numbers(grid.results, grid.folder / "undisturbed")


def test_a_copy_for_which_there_is_no_room(undisturbed: Undisturbed, disk: Path) -> None:
    words = ("store", "copy", str(undisturbed.results), "copied")
    done = undisturbed.forks.run(disk, *words, fault="full when a student is copied")
    assert "Traceback" not in done.err
    assert "No space left on device" in done.err
    assert len(done.errors) == 1
    (disk / FILLER).unlink()
    assert undisturbed.forks.run(disk, *words).code == 0
    assert_same_numbers(disk / "copied", undisturbed.results)
    assert listing(disk / "copied").keys() == listing(undisturbed.results).keys()


# --- no permission -----------------------------------------------------------------------------------------------


@contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    """Nothing can be made in the folder, within the block."""
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)


def test_a_run_whose_folder_cannot_be_written(undisturbed: Undisturbed, tmp_path: Path) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    crd = [run_id for run_id, run in runs_in(undisturbed.results).items() if run["row"] == "crd"]
    for run_id in crd:
        (grid.results / "runs" / run_id).mkdir(parents=True)
    with _unwritable(grid.results / "runs" / crd[0]), _unwritable(grid.results / "runs" / crd[1]):
        done = grid.run("unprivileged")
    _assert_trouble(done, "2 runs failed")
    assert done.err.count("FAILED resnet8 crd") == 2
    assert "checkpoint.pt cannot be used (Permission denied): see to that, and go on" in done.err
    _others_are_as_undisturbed(grid, "crd")
    assert_intact(grid.results)
    grid.finish()


def test_a_results_folder_that_cannot_be_written(undisturbed: Undisturbed, tmp_path: Path) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    grid.results.mkdir()
    with _unwritable(grid.results):
        assert_refused(grid.run("unprivileged"), "results folder results cannot be written to (Permission denied)")
    assert not list(grid.results.iterdir())
    grid.finish()


def test_a_finished_store_in_a_folder_that_cannot_be_written(undisturbed: Undisturbed, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.folder, tmp_path / "grid")
    before = listing(tmp_path / "grid")
    with _unwritable(tmp_path / "grid" / "undisturbed"), _unwritable(tmp_path / "grid"):
        for words in (("status",), ("report",), ("store", "check"), LITTLE):
            variables = {"KDTABLE_RESULTS": "undisturbed"}
            done = undisturbed.forks.run(tmp_path / "grid", *words, fault="unprivileged", **variables)
            assert done.code == 0, done.err
    assert listing(tmp_path / "grid") == before


def test_a_trained_teacher_in_a_folder_that_cannot_be_written(undisturbed: Undisturbed, tmp_path: Path) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    (grid.folder / "teachers").mkdir()
    words = ("train-teachers", "resnet8", "--epochs", "1", *SMALL)
    with _unwritable(grid.folder / "teachers"):
        done = undisturbed.forks.run(grid.folder, *words, fault="unprivileged")
    _assert_trouble(done, "resnet8 is trained, but ", "/resnet8.safetensors cannot be written (Permission denied)")
    assert undisturbed.forks.run(grid.folder, *words).code == 0


# --- a clock that jumps, and memory ------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards(undisturbed: Undisturbed, tmp_path: Path) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    forks = undisturbed.forks
    first = forks.start(grid.folder, *LITTLE, fault="the clock goes backwards", KDTABLE_LEASE="20")
    second = forks.start(grid.folder, *LITTLE, fault="the clock goes backwards", KDTABLE_LEASE="20")
    done = [first.finish(), second.finish()]
    assert [command.code for command in done] == [0, 0], done[0].err + done[1].err
    told = [line.partition(" resnet8 ")[2].partition(":")[0] for command in done for line in command.errors]
    epochs = [line for line in told if " epoch " in line]
    assert len(epochs) == len(set(epochs)), "no epoch was trained twice"
    assert query(grid.results, "select run from results where finished >= started") == [], "the clock did go backwards"
    grid.assert_as_undisturbed()


def test_a_student_for_which_there_is_no_memory(undisturbed: Undisturbed, tmp_path: Path) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    done = grid.run("a student that is too large")
    _assert_trouble(done, "2 runs failed")
    assert "memory ran out with 3 runs together, so what is left goes on in two parts (no room for 1 GiB)" in done.err
    assert done.err.count("FAILED resnet8 kd seed 1: it does not fit into memory (no room for 1 GiB)") == 1
    _others_are_as_undisturbed(grid, "kd")
    assert_intact(grid.results)
    grid.finish()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
@pytest.mark.parametrize("trouble", ["memory for no student", "memory for few students"])
def test_memory_that_is_really_limited(forks: Forks, undisturbed: Undisturbed, tmp_path: Path, trouble: str) -> None:
    grid = undisturbed.again(tmp_path / "grid")
    write_images(grid.folder / "tiny.npz", train=512, test=8)
    words = (
        *("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd,at,sp", "--epochs", "1", *TEACHER),
        *("--data", "npz:tiny.npz", "--batch-size", "256", "--device", "cpu"),
    )
    done = forks.run(grid.folder, *words, fault=trouble)
    # A kernel of torch's may crash when memory runs out within it.
    assert done.code in (0, 1, -signal.SIGSEGV, -signal.SIGABRT), done.err
    assert_intact(grid.results)
    for results in ("results", "undisturbed"):
        assert forks.run(grid.folder, *words, "--results", results).code == 0
    assert_same_numbers(grid.results, grid.folder / "undisturbed")
