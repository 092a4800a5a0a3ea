"""``--teacher-cache``: what was kept before changes no number, and what it takes is said before."""

import re
import shutil
import statistics
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from kdtable.execution import teacher_caches
from kdtable.training.teacher import FrozenTeacher
from tests.cli.command import (
    SMALL,
    SMALL_CRD,
    TEACHER,
    Call,
    Shell,
    assert_refused,
    assert_same_numbers,
    finish,
    listing,
    runs_in,
    wait_for,
    write_images,
)
from tests.faults.forks import Forks

PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "2", *SMALL, *TEACHER)
CACHED = (*PAIR, "--methods", "vanilla,kd,at,crd", *SMALL_CRD, "--teacher-cache", "fp32")
IMAGES, VIEWS, TESTED = 48, 162, 24
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def filled(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the grid was trained with a cache that was empty."""
    folder = tmp_path_factory.mktemp("filled")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    done = forks.run(folder, *CACHED)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def kept(filled: Path, tiny: Path) -> Path:
    """The test's folder with that cache, and no results."""
    shutil.copytree(filled / "views", tiny / "views")
    return tiny


def rows_there(folder: Path, part: str = "logits") -> np.ndarray:
    """Tags of a cache's rows, 0 for those that are missing."""
    (file,) = (folder / "views").glob(f"*/{part}.bin")
    return np.fromfile(file, np.uint64, IMAGES * VIEWS)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each of the teacher's passes is over."""
    asked: list[int] = []
    outputs = FrozenTeacher.outputs

    def counted(self, batch, needs):
        asked.append(len(batch.images))
        return outputs(self, batch, needs)

    monkeypatch.setattr(FrozenTeacher, "outputs", counted)
    return asked


def test_runs_that_read_kept_outputs_have_a_precision_of_their_own(filled: Path) -> None:
    runs = {str(run["row"]): run for run in runs_in(filled / "results").values()}
    assert {row: run["precision"] for row, run in runs.items()} == {
        "vanilla": "fp32",
        "kd": "fp32-cached",
        "at": "fp32",
        "crd": "fp32-cached",
    }
    assert {run["status"] for run in runs.values()} == {"done"}
    # two epochs, in each of which an image is seen in one view
    assert IMAGES < np.count_nonzero(rows_there(filled)) <= 2 * IMAGES
    assert np.array_equal(rows_there(filled) != 0, rows_there(filled, "embedding") != 0)


def test_a_full_cache_gives_the_same_numbers_without_the_teacher(
    call: Call, filled: Path, kept: Path, passes: list[int]
) -> None:
    done = call(*CACHED, "--methods", "vanilla,kd,crd")
    assert done.code == 0, done.err
    assert passes == [TESTED]  # once, for the agreement with the teacher on the test images
    assert call(*CACHED).code == 0
    assert set(passes) == {16, TESTED}
    assert_same_numbers(kept / "results", filled / "results")


@pytest.mark.parametrize("damage", ["half", "torn", "short"])
def test_a_damaged_cache_gives_the_same_numbers(
    call: Call, filled: Path, kept: Path, passes: list[int], damage: str
) -> None:
    for file in (kept / "views").glob("*/*.bin"):
        content = bytearray(file.read_bytes())
        tags = IMAGES * VIEWS * 8
        if damage == "half":
            content[: tags // 2] = bytes(tags // 2)
        elif damage == "torn":
            content[tags::3] = bytes(len(content[tags::3]))
        else:
            del content[tags + 1000 :]
        file.write_bytes(content)
    done = call(*CACHED)
    assert done.code == 0, done.err
    assert len(passes) > 6  # at's, which is asked each time
    assert_same_numbers(kept / "results", filled / "results")


def test_a_killed_command_leaves_a_cache_that_can_be_used(filled: Path, tiny: Path) -> None:
    shell = Shell(tiny)
    process = shell.start(*CACHED)
    try:
        wait_for("main epoch 1/2", process)
    finally:
        process.kill()
    finish(process)
    assert np.count_nonzero(rows_there(tiny)) >= IMAGES
    shutil.rmtree(tiny / "results")
    done = shell.run(*CACHED)
    assert done.code == 0, done.err
    assert_same_numbers(tiny / "results", filled / "results")


def test_two_commands_fill_a_cache_at_once(tiny: Path) -> None:
    shell = Shell(tiny)
    command = (*PAIR, "--methods", "kd", "--seeds", "2", "--teacher-cache", "fp32", "--results")
    together = [shell.start(*command, name) for name in ("one", "two")]
    for process in together:
        done = finish(process)
        assert done.code == 0, done.err
    assert_same_numbers(tiny / "one", tiny / "two")
    assert shell.run(*command, "three").code == 0
    assert_same_numbers(tiny / "one", tiny / "three")


def test_the_cache_is_not_taken_for_the_plain_teacher(call: Call, kept: Path) -> None:
    precisions = {"fp32": "fp32-cached", "off": "fp32", "fp16": "fp32-cached16"}
    for kind in precisions:
        assert call(*PAIR, "--methods", "kd", "--teacher-cache", kind).code == 0
    assert [run["precision"] for run in runs_in(kept / "results").values()] == list(precisions.values())
    assert len(list((kept / "views").glob("[!.]*"))) == 2
    shown = call("report").out
    assert shown.count("│ kd #") == 3
    assert all(f"kept on disk ({name})" in shown for name in ("fp32-cached", "fp32-cached16"))


def test_a_plan_says_what_is_kept_and_what_it_takes(call: Call, kept: Path) -> None:
    before = listing(kept)
    done = call(*CACHED, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert listing(kept) == before
    used, size, *_ = done.out.splitlines()
    assert used == ("teacher cache: used by kd, crd; not by vanilla (no teacher), at (reads the teacher's stages)")
    share = np.count_nonzero(rows_there(kept)) / (IMAGES * VIEWS)
    full = IMAGES * VIEWS * (4 * (4 + 64) + 16)
    assert f"logits and embedding of resnet14 for {IMAGES * VIEWS:,} views, fp32: {full / 1e6:.1f} MB when full" in size
    assert f"({share:.1%} of logits, {share:.1%} of embedding there)" in size
    assert re.search(r"\d GB free in views/[0-9a-f]{16}$", size)
    assert "4 runs: 0 done, 4 to train in 2 cohorts" in done.out


def test_a_run_says_it_before_it_trains(call: Call, kept: Path) -> None:
    first = call(*CACHED)
    lines = first.errors
    assert lines[0].startswith("teacher cache: used by kd, crd; not by ")
    assert "when full" in lines[1]
    assert lines[2].startswith("cohort 1/2")
    assert "teacher cache" not in first.out
    again = call(*CACHED)
    assert (again.code, again.err) == (0, "")


def test_a_plan_without_its_teacher_tells_the_size(call: Call, tmp_path: Path) -> None:
    write_images(tmp_path / "tiny.npz")
    before = listing(tmp_path)
    done = call(*PAIR[:-2], "--methods", "kd", "--teacher-cache", "fp16", "--dry-run")
    assert done.code == 0
    assert "logits of resnet14 for 7,776 views, fp16: " in done.out
    assert "the teacher is not there yet" in done.out
    assert listing(tmp_path) == before


def test_rows_that_read_feature_maps_train_without_a_cache(call: Call, tiny: Path) -> None:
    done = call(*PAIR, "--methods", "at", "--teacher-cache", "fp32")
    assert done.code == 0
    assert "teacher cache: used by none; not by at (reads the teacher's stages)" in done.err
    assert not (tiny / "views").exists()
    assert [run["precision"] for run in runs_in(tiny / "results").values()] == ["fp32"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/ beside the repository")
def test_accuracy_of_faster_paths_is_that_of_fp32(call: Call, tmp_path: Path) -> None:
    """Three seeds on real images: the means differ by less than the seeds do."""
    shutil.copy(SHARED / "teachers" / "resnet20-12fca82f.th", tmp_path)
    asked = (
        "run",
        "--pairs",
        "resnet20_a:resnet8",
        "--methods",
        "kd",
        "--seeds",
        "3",
        "--epochs",
        "3",
        "--device",
        "cpu",
    )
    given = ("--data", f"npz:{SHARED / 'data' / 'cifar10_excerpt.npz'}", "--teacher", "resnet20_a=resnet20-12fca82f.th")
    paths = {
        "fp32": (),
        "fp32-cached": ("--teacher-cache", "fp32"),
        "fp32-cached16": ("--teacher-cache", "fp16"),
        "bf16": ("--precision", "bf16"),
    }
    top1: dict[str, list[float]] = {}
    for name, options in paths.items():
        done = call(*asked, *given, *options, "--results", name)
        assert done.code == 0, done.err
        runs = runs_in(tmp_path / name).values()
        assert {run["precision"] for run in runs} == {name}
        top1[name] = [float(str(run["last_top1"])) for run in runs]
    assert min(top1["fp32"]) > 0.2  # twice chance: the students learn something
    spread = max(top1["fp32"]) - min(top1["fp32"])
    for name in paths:
        assert abs(statistics.fmean(top1[name]) - statistics.fmean(top1["fp32"])) < spread, top1


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_disk_without_room_is_refused(call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch, more) -> None:
    before = listing(tiny)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 1000))
    done = call(*CACHED, *more)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert "kdtable: the teachers' outputs may take 2,239,488 bytes more" in done.err
    assert "1,000 free" in done.err
    assert listing(tiny) == before


def test_endless_views_are_refused(call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(tiny)
    monkeypatch.setattr(teacher_caches, "views_of", lambda run: None)
    assert_refused(call(*CACHED), "tiny are cropped in endlessly many ways", "leave out --teacher-cache")
    assert call(*CACHED, "--teacher-cache", "off", "--dry-run").code == 0
    assert listing(tiny) == before


def test_an_unknown_kind_is_refused(call: Call, tiny: Path) -> None:
    before = listing(tiny)
    assert_refused(call(*CACHED, "--teacher-cache", "int8"), "--teacher-cache", "off, fp32, fp16", "'int8'")
    assert listing(tiny) == before
