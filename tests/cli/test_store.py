"""``kdtable store``, ``--store`` and ``--keep`` as a user meets them."""

import shutil
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdtable.store import Store
from kdtable.store.records import packed
from kdtable.store.schema import histories
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
from tests.cli.conftest import GRID
from tests.postgres import Server

RUN = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd", "--epochs", "2", *SMALL, *TEACHER)
SECRET = "hunter2"


@pytest.fixture
def url(postgres_server: Server) -> str:
    """An empty database, reached with a password that nobody may see."""
    return postgres_server.new_database().replace("//kdtable@", f"//kdtable:{SECRET}@")


# --- a database on a server -------------------------------------------------------------------------------------


def test_a_grid_on_a_server(after_grid: Path, url: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers as in a folder, and nothing else in the folder than files."""
    results = ("--results", "again", "--store", url)
    trained = call("train-teachers", "resnet14", "--epochs", "2", *SMALL, *results)
    assert trained.code == 0, trained.err
    done = call(*GRID, "--seeds", "2", *results)
    assert done.code == 0, done.err
    assert not list((after_grid / "again").glob("*.sqlite*"))
    assert_same_numbers(after_grid / "again", after_grid / "results", url)
    assert call("status", *results).out.startswith("11 done")
    assert call("report", *results, "--format", "json").out == call("report", "--format", "json").out
    assert call("store", "check", *results).out == "all is well\n"
    monkeypatch.setenv("KDTABLE_STORE", url)
    again = call(*GRID, "--seeds", "2", "--results", "again")
    assert (again.code, again.err) == (0, "")
    assert SECRET not in trained.out + trained.err + done.out + done.err


COMMANDS = [
    RUN,
    (*RUN, "--dry-run"),
    ("status",),
    ("report",),
    ("train-teachers", "resnet8", *SMALL),
    ("store", "check"),
    ("store", "prune"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_a_server_that_is_not_there(command: tuple[str, ...], tiny: Path, call: Call) -> None:
    before = listing(tiny)
    url = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/db"
    done = call(*command, "--store", url)
    assert_refused(done, "postgresql+psycopg://me:***@127.0.0.1:9/db cannot be reached", "--store")
    assert SECRET not in done.err
    assert listing(tiny) == before


def test_a_copy_to_a_server_that_is_not_there(after_grid: Path, call: Call) -> None:
    done = call("store", "copy", "results", f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/db")
    assert_refused(done, "cannot be reached", "me:***@")
    assert SECRET not in done.err


def test_a_database_without_a_store(url: str, tiny: Path, call: Call) -> None:
    for command in (("status",), ("report",), ("store", "check"), ("store", "prune")):
        done = call(*command, "--store", url)
        assert_refused(done, "there is no results store", "kdtable run", "--store")
        assert SECRET not in done.err
    assert f"{2} to train" in call(*RUN, "--dry-run", "--store", url).out
    assert_refused(call("status", "--store", url), "there is no results store")


def test_what_an_interruption_says_has_no_password(tiny: Path, url: str) -> None:
    write_images(tiny / "tiny.npz", train=160)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = Shell(tiny).start(*RUN, "--store", url)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        wait_for("epoch 1/2", process)
        process.send_signal(signal.SIGINT)
        done = finish(process)
    finally:
        process.kill()
    assert done.code == 130, done.err
    assert "kdtable:***@/" in done.errors[-1]
    assert SECRET not in done.err
    assert {run["status"] for run in runs_in(tiny / "results", url).values()} <= {"planned", "done"}


# --- copying ----------------------------------------------------------------------------------------------------


def test_results_travel(after_grid: Path, url: str, call: Call) -> None:
    first = call("store", "copy", "results", url)
    assert first.code == 0, first.err
    assert first.out.splitlines()[0] == "copied 11 runs; 0 were there already"
    assert "Checkpoints and students were not copied" in first.out
    assert call("store", "copy", url, "back").out.startswith("copied 11 runs")
    assert call("store", "copy", "results", "back").out == "copied 0 runs; 11 were there already\n"
    for words in (("--results", "back"), ("--store", url)):
        assert call("report", "--format", "json", *words).out == call("report", "--format", "json").out
        again = call(*GRID, "--seeds", "2", *words)
        assert (again.code, again.err) == (0, ""), "nothing is trained again"
    assert call("store", "check", "--store", url).out == "all is well\n"
    assert call("store", "check", "--results", "back").out == "all is well\n", "students came with the last copy"
    assert_same_numbers(after_grid / "back", after_grid / "results")


def test_a_damaged_student_stays_behind(after_grid: Path, call: Call) -> None:
    student = min((after_grid / "results").glob("runs/*/student.safetensors"))
    content = bytearray(student.read_bytes())
    content[len(content) // 2] ^= 1
    student.write_bytes(content)
    done = call("store", "copy", "results", "back")
    assert done.code == 1
    assert done.out == "copied 11 runs; 0 were there already\n"
    problem, advice = done.errors
    assert problem.startswith(f"kdtable: {student.relative_to(after_grid)} holds other weights than kdtable wrote")
    assert problem.endswith("it was left out")
    assert advice == "kdtable: 1 damaged files were left out; 'kdtable store check --results results' says more"
    there = {path.parent.name for path in (after_grid / "back").glob("runs/*/student.safetensors")}
    assert there == runs_in(after_grid / "back").keys() - {student.parent.name}
    assert call("report", "--results", "back").out == call("report").out


@pytest.mark.parametrize("name", ["a?b=c", "p%41 Größe"])
def test_results_in_a_folder_with_an_odd_name(name: str, tiny: Path, call: Call) -> None:
    words = ("--results", f"{name}/r")
    ran = call(*RUN[:4], "vanilla", "--epochs", "1", *SMALL, *words)
    assert ran.code == 0, ran.err
    assert call("status", *words).out.startswith("1 done")
    assert call("report", *words).code == 0
    copied = call("store", "copy", f"{name}/r", f"{name}/s")
    assert (copied.code, copied.out) == (0, "copied 1 run; 0 were there already\n"), copied.err
    assert call("store", "check", "--results", f"{name}/s").out == "all is well\n"
    assert call("store", "prune", *words).out == "nothing to remove\n"
    assert {path.name for path in tiny.iterdir()} == {"tiny.npz", "resnet14.pth", name}


def test_stores_of_several_jobs_are_merged(tiny: Path, call: Call) -> None:
    """Each job trained a seed; the third one the first seed again, on other numbers."""
    for seed in (1, 2):
        assert call(*RUN, "--seeds", f"{seed},", "--results", f"job-{seed}").code == 0
    assert call(*RUN, "--seeds", "2", "--results", "alone").code == 0
    shutil.copytree(tiny / "job-1", tiny / "job-3")
    with closing(Store(tiny / "job-3")) as store, store.database.write() as db:
        run = store.runs()[0]
        changed = [replace(epoch, metrics={**epoch.metrics, "top1": 0.0}) for epoch in store.history(run.id)]
        db.execute(histories.update().where(histories.c.run == run.key).values(content=packed(changed)))
    done = call("store", "merge", "job-1", "job-2", "job-3", "--into", "all")
    assert (done.code, done.out) == (1, "merged 2 stores: 4 runs; 0 were there already\n")
    assert "kdtable: job-3: nothing was copied: run" in done.err
    assert "has other numbers in the other store; copy into another store; it was left out" in done.err
    assert_same_numbers(tiny / "all", tiny / "alone")
    assert call("store", "merge", "job-1", "--into", "all").out == "merged 1 store: 0 runs; 2 were there already\n"
    assert call("report", "--results", "all").out == call("report", "--results", "alone").out
    assert_refused(call("store", "merge", "job-1", "job-9", "--into", "other"), "there is no results store in job-9")
    assert not (tiny / "other").exists()
    assert_refused(call("store", "merge", "all", "--into", "all"), "all is to be merged into itself: leave it out")


def test_results_that_differ(after_grid: Path, call: Call) -> None:
    words = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla", "--epochs", "2", *SMALL)
    assert call(*words, "--results", "other").code == 0
    with closing(Store(after_grid / "other")) as store:
        (run,) = store.runs()
        history = [replace(epoch, train_loss=epoch.train_loss / 2) for epoch in store.history(run.id)]
        with store.database.write() as db:
            db.execute(histories.update().values(content=packed(history)))
    (run,) = runs_in(after_grid / "other")
    before = runs_in(after_grid / "results")
    done = call("store", "copy", "other", "results")
    assert_refused(done, "nothing was copied", f"run {run} has other numbers in the other store")
    assert runs_in(after_grid / "results") == before


# --- checking and pruning ---------------------------------------------------------------------------------------


def test_checking(after_grid: Path, call: Call) -> None:
    assert call("store", "check").out == "all is well\n"
    student = next((after_grid / "results").glob("runs/*/student.safetensors"))
    content = bytearray(student.read_bytes())
    content[len(content) // 2] ^= 1
    student.write_bytes(content)
    before = listing(after_grid / "results" / "runs")
    done = call("store", "check")
    assert done.code == 1
    (finding, count) = done.out.splitlines()
    assert str(student.relative_to(after_grid)) in finding
    assert "delete it, train it into another folder" in finding
    assert count == "1 findings"
    assert listing(after_grid / "results" / "runs") == before


def test_pruning(after_grid: Path, call: Call) -> None:
    results = after_grid / "results"
    before = listing(results / "runs")
    size = sum(len(content or b"") for content in before.values()) / 1e6
    assert call("store", "prune").out == "nothing to remove\n"
    told = call("store", "prune", "--keep", "none")
    assert told.code == 0
    assert told.out == (f"11 students: {size:,.1f} MB\nWould remove 11 files, {size:,.1f} MB: add --yes to do it.\n")
    assert listing(results / "runs") == before
    done = call("store", "prune", "--keep", "none", "--yes")
    assert done.out.endswith(f"removed 11 files, {size:,.1f} MB\n")
    assert not list(results.glob("runs/*/*"))
    assert call("store", "check").out == "all is well\n"
    assert call("report").code == 0
    assert_refused(call("store", "prune", "--keep", "some"), "'--keep': 'some' is not one of 'last', 'none'")


# --- what is kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "files"),
    [
        ("last", {"student.safetensors"}),
        ("all", {"student.safetensors", "epochs/main-0001.pt", "epochs/main-0002.pt"}),
        ("none", set()),
    ],
)
def test_weights_that_are_kept(keep: str, files: set[str], tiny: Path, call: Call) -> None:
    done = call(*RUN, "--keep", keep)
    assert done.code == 0, done.err
    runs = runs_in(tiny / "results")
    for run in runs:
        folder = tiny / "results" / "runs" / run
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == files
    assert {run["kept"] for run in runs.values()} == {keep}
    assert call("store", "check").out == "all is well\n"
    assert call(*RUN, "--keep", "last").err == "", "what is done is not trained again for its weights"


def test_each_epochs_checkpoint_is_of_its_epoch(tiny: Path, call: Call) -> None:
    staged = (*RUN[:4], "fitnet-2stage,crd", *RUN[5:], *SMALL_CRD)
    assert call(*staged, "--keep", "all").code == 0
    for run in runs_in(tiny / "results"):
        folder = tiny / "results" / "runs" / run / "epochs"
        for path in folder.iterdir():
            last = torch.load(path, weights_only=True)["history"][-1]
            assert path.name == f"{last['stage']}-{last['epoch']:04d}.pt"
    stages = {path.name.rpartition("-")[0] for path in (tiny / "results").glob("runs/*/epochs/*")}
    assert len(stages) == 2, "early stages are kept too"


def test_weights_that_cannot_be_kept(tiny: Path, call: Call) -> None:
    assert_refused(call(*RUN, "--keep", "best"), "'--keep': 'best' is not one of 'last', 'all', 'none'")
    assert not (tiny / "results").exists()


def test_many_runs_are_summarised(after_grid: Path, call: Call) -> None:
    with closing(Store(after_grid / "results")) as store:
        known = replace(store.runs()[0], status="planned", result=None)
        store.plan(replace(known, id=f"r{number}", seed=number) for number in range(1200))
    lines = call("status").out.splitlines()
    assert lines[0] == "11 done, 1,200 missing"
    assert "... and 1,150 more" in lines
    assert len(lines) < 70
