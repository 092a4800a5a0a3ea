"""From images and a teacher to a table, as a user goes."""

import re
import statistics
from pathlib import Path

import pytest

from tests.cli.command import SMALL, Call, Done, Shell, listing, runs_in, write_images, write_teacher
from tests.cli.conftest import GRID, Grid

ROWS = ("vanilla", "kd", "at", "crd", "crd+kd")
RUN_ID = re.compile(r"\b[0-9a-f]{16}\b")


def test_a_teacher_is_trained_and_found(grid: Grid) -> None:
    assert grid.trained.code == 0, grid.trained.err
    (teacher,) = (grid.folder / "teachers").rglob("resnet14.safetensors")
    assert grid.trained.out == f"trained: {teacher.relative_to(grid.folder)}\n"
    (run,) = (run for run in runs_in(grid.folder / "results").values() if run["student"] == "resnet14")
    assert (run["status"], run["row"], run["seed"], run["last_epoch"]) == ("done", "vanilla", 1, 2)


def test_the_table_has_every_row(grid: Grid) -> None:
    assert grid.ran.code == 0, grid.ran.err
    assert "Traceback" not in grid.ran.err
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in grid.ran.out.splitlines() if "│" in line]
    shown = {cells[0]: cells[1] for cells in lines if cells[0]}
    changed = "(dim=8, negatives=16)"
    assert list(shown) == ["teacher", "student", "kd", "at", f"crd {changed}", f"crd+kd {changed}"]
    for label, text in shown.items():
        row = {"student": "vanilla"}.get(label, label.partition(" ")[0])
        assert text.rstrip(" ↑↓*~≈=¹²³⁴") == _expected(grid, row), label  # raised digits are footnotes
    assert "resnet14:resnet8" in grid.ran.out
    assert "over 2 seeds" in grid.ran.out


def _expected(grid: Grid, row: str) -> str:
    runs = runs_in(grid.folder / "results").values()
    if row == "teacher":
        (top1,) = (run["last_top1"] for run in runs if run["student"] == "resnet14")
        assert isinstance(top1, float)
        return f"{100 * top1:.2f}"
    values = [100 * float(str(run["last_top1"])) for run in runs if (run["row"], run["student"]) == (row, "resnet8")]
    assert len(values) == 2
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def test_progress_in_plain_lines(grid: Grid) -> None:
    for seed in (1, 2):
        cohort = f"cohort {seed}/2: seed {seed}, 5 runs of resnet8 with teacher resnet14: {', '.join(ROWS)}"
        assert cohort in grid.ran.err
        for row in ROWS:
            assert f"cohort {seed}/2 resnet8 {row} seed {seed} main epoch 2/2: loss " in grid.ran.err
    assert "images/s" in grid.ran.err
    assert "\x1b" not in grid.ran.err + grid.ran.out


def test_what_is_stored_traces_every_number(grid: Grid) -> None:
    runs = runs_in(grid.folder / "results")
    assert len(runs) == 11
    for run in runs.values():
        assert run["status"] == "done"
        assert all(word in str(run["provenance"]) for word in ('"torch"', '"source"', '"numerics"', '"platform"'))
        assert all(word in str(run["identity"]) for word in ("'recipe'", "'sha256'", "'terms'", "'params'"))
        assert float(str(run["wall_seconds"])) > 0
        assert float(str(run["cpu_seconds"])) > 0
        assert (int(str(run["method_parameters"])) > 0) == (run["row"] in ("crd", "crd+kd"))
        assert int(str(run["parameters"])) > 10_000
        assert (run["precision"], run["epochs"]) == ("fp32", 2)
        assert bool(run["teacher_sha256"]) == (run["row"] != "vanilla")
    kept = sorted(path.name for path in (grid.folder / "results" / "runs").glob("*/*"))
    assert kept == ["student.safetensors"] * 11


def test_a_repeated_run_trains_nothing(call: Call, grid: Grid, after_grid: Path) -> None:
    before = runs_in(after_grid / "results")
    done = call(*GRID, "--seeds", "2")
    assert (done.code, done.err) == (0, "")
    assert done.out == grid.ran.out
    assert runs_in(after_grid / "results") == before


def test_one_more_seed_trains_only_that(call: Call, after_grid: Path) -> None:
    before = runs_in(after_grid / "results")
    done = call(*GRID, "--seeds", "3")
    assert done.code == 0
    assert done.err.startswith("cohort 1/1: seed 3, 5 runs of resnet8")
    assert "over 3 seeds" in done.out
    after = runs_in(after_grid / "results")
    assert {run: after[run] for run in before} == before
    new = [run for name, run in after.items() if name not in before]
    assert [(run["row"], run["seed"]) for run in new] == [(row, 3) for row in ROWS]


def test_a_list_of_seeds(call: Call, after_grid: Path) -> None:
    done = call(*GRID, "--seeds", "7,2", "--methods", "vanilla,crd", "--dry-run")
    assert "4 runs: 2 done, 2 to train in 1 cohort" in done.out


def test_pairs_with_one_student_share_its_plain_runs(call: Call, after_grid: Path) -> None:
    write_teacher(after_grid / "resnet8.pth", network="resnet8")
    before = runs_in(after_grid / "results")
    command = ("run", "--pairs", "resnet14:resnet8,resnet8:resnet8", "--methods", "vanilla,kd", "--seeds", "2")
    done = call(*command, "--epochs", "2", "--teacher", "resnet8=resnet8.pth", *SMALL)
    assert done.code == 0, done.err
    new = [run for name, run in runs_in(after_grid / "results").items() if name not in before]
    assert [(run["row"], run["teacher"], run["seed"]) for run in new] == [("kd", "resnet8", 1), ("kd", "resnet8", 2)]
    (student,) = (line for line in done.out.splitlines() if "│ student" in line)
    _, _, first, second, _ = (cell.strip() for cell in student.split("│"))
    assert first == second != "—"


@pytest.mark.parametrize(
    ("pairs", "same"),
    [
        ("wrn-16-2:wrn-16-1", "wrn_16_2:wrn_16_1"),
        ("WRN-16-2:wrn_16-1", "wrn_16_2:wrn_16_1"),
        ("res14:ResNet-8", "resnet14:resnet8"),
        ("ResNet50:ShuffleNetV1", "cifar_resnet50:ShuffleV1"),
    ],
)
def test_spellings_of_one_pair(pairs: str, same: str, call: Call, tiny: Path) -> None:
    rest = ("--methods", "vanilla,kd", "--dry-run", *SMALL)
    plans = [call("run", "--pairs", spelling, *rest) for spelling in (pairs, same)]
    # The estimate of the time at the end is never the same twice.
    assert plans[0].out.partition("Training ")[0] == plans[1].out.partition("Training ")[0]
    assert plans[0].code == plans[1].code == 0
    assert "2 runs: 0 done, 2 to train" in plans[0].out


def test_a_spelling_finds_what_was_trained(call: Call, after_grid: Path) -> None:
    done = call(*GRID, "--pairs", "res14:res8", "--seeds", "2", "--dry-run")
    assert "10 runs: 10 done, 0 to train" in done.out


def test_a_plan_writes_nothing_and_names_the_runs(
    call: Call, grid: Grid, after_grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    before = listing(after_grid)
    done = call(*GRID, "--seeds", "2", "--results", "elsewhere", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert "10 runs: 0 done, 10 to train in 2 cohorts" in done.out
    assert listing(after_grid) == before
    trained = {name for name, run in runs_in(grid.folder / "results").items() if run["student"] == "resnet8"}
    assert set(RUN_ID.findall(done.out)) == trained


def test_a_plan_without_its_teacher(call: Call, tmp_path: Path) -> None:
    write_images(tmp_path / "tiny.npz")
    before = listing(tmp_path)
    done = call("run", "--pairs", "resnet20:resnet8", "--methods", "vanilla,kd", "--dry-run", *SMALL)
    assert done.code == 0
    assert "Not there yet" in done.out
    assert "resnet20" in done.out
    assert listing(tmp_path) == before


def test_a_plan_is_whole_in_a_pipe(call: Call, after_grid: Path) -> None:
    done = call(*GRID, "--seeds", "3", "--dry-run")
    assert len(set(RUN_ID.findall(done.out))) == 5, done.out
    assert "crd+kd" in done.out
    assert "…" not in done.out


def test_status_of_a_finished_grid(after_grid: Path) -> None:
    done = Shell(after_grid).run("status")
    assert done == Done(0, done.out, "")
    assert done.out.startswith("11 done\n")
    assert "┃" not in done.out, "no run is listed"
    assert "the recipe differs from that of crd: batch_size 16 for 64" in " ".join(done.out.split())


def test_the_whole_place_can_be_given_by_options(call: Call, after_grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (after_grid / "results").rename(after_grid / "r")
    (after_grid / "teachers").rename(after_grid / "t")
    asked = (*GRID, "--seeds", "2", "--dry-run")
    assert "10 done" in call(*asked, "--results", "r", "--teachers-dir", "t").out
    monkeypatch.setenv("KDTABLE_RESULTS", "r")
    monkeypatch.setenv("KDTABLE_TEACHERS", "t")
    assert "10 done" in call(*asked).out
    assert call("status").out.startswith("11 done")
