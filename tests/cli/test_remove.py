"""``kdtable store remove``, as a user meets it."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kdtable.store import Store
from tests.cli.command import SMALL, Call, assert_refused, environment, listing, runs_in
from tests.cli.conftest import GRID


def chosen(folder: Path, **fields: object) -> set[str]:
    found = runs_in(folder / "results")
    return {run_id for run_id, run in found.items() if all(run[name] == value for name, value in fields.items())}


def test_runs_go_after_being_named(after_grid: Path, call: Call) -> None:
    crd = chosen(after_grid, row="crd")
    before = listing(after_grid)
    told = call("store", "remove", "--where", "row=crd")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[-1] == "Would remove 2 runs: add --yes to do it."
    assert all(run in told.out for run in crd)
    assert listing(after_grid / "results" / "runs").keys() == {
        name.removeprefix("results/runs/") for name in before if name.startswith("results/runs/")
    }
    done = call("store", "remove", "--where", "row=crd", "--yes")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "removed 2 runs"
    assert not crd & runs_in(after_grid / "results").keys()
    assert not [run for run in crd if (after_grid / "results" / "runs" / run).exists()]
    assert call("store", "check").out == "all is well\n"
    assert call("status").out.startswith("9 done")
    assert call(*GRID, "--seeds", "2").code == 0, "and what was removed is trained again"
    assert len(chosen(after_grid, row="crd", status="done")) == 2


def test_runs_are_named_by_id_cell_and_state(after_grid: Path, call: Call) -> None:
    (seed2,) = chosen(after_grid, row="at", seed=2)
    assert call("store", "remove", seed2[:9], "--yes").out.splitlines()[-1] == "removed 1 run"
    assert call("store", "remove", "tiny:kd:resnet14:resnet8", "--yes").out.splitlines()[-1] == "removed 2 runs"
    words = ("run", "--pairs", "resnet14:resnet8", "--methods", "nst", "--seeds", "1", "--epochs", "1", *SMALL)
    assert call(*words, "--set", "weight.nst=1e38").code == 1
    with closing(Store(after_grid / "results")) as store:
        known = replace(store.runs()[0], status="planned", result=None)
        store.plan([replace(known, id="p" * 16, seed=99)])
    assert call("store", "remove", "--failed", "--where", "seed=2", "--yes").out == "nothing to remove\n"
    failed = call("store", "remove", "--failed", "--planned", "--yes")
    assert failed.out.splitlines()[-1] == "removed 2 runs"
    assert chosen(after_grid, status="done") == runs_in(after_grid / "results").keys()
    assert call("store", "check").out == "all is well\n"


def test_a_teacher_stays_while_students_of_it_do(after_grid: Path, call: Call) -> None:
    (teacher,) = chosen(after_grid, student="resnet14")
    done = call("store", "remove", teacher, "--yes")
    assert (done.code, done.out) == (0, "nothing to remove\n")
    assert done.err.startswith(f"kdtable: run {teacher} stays, since 8 runs (")
    assert done.err.endswith(", ...) start from it\n")
    assert call("store", "remove", "tiny:vanilla:resnet8", "--yes").code == 0
    everything = call("store", "remove", "--where", "status=done", "--yes")
    assert everything.out.splitlines()[-1] == "removed 9 runs"
    assert runs_in(after_grid / "results") == {}


def test_requests_that_cannot_be_met(after_grid: Path, call: Call) -> None:
    before = runs_in(after_grid / "results")
    assert_refused(call("store", "remove"), "nothing to remove: name runs, or say which with --failed")
    assert_refused(call("store", "remove", "--yes"), "nothing to remove")
    assert_refused(call("store", "remove", "0000", "--yes"), "unknown run '0000': use one of")
    assert_refused(call("store", "remove", "--where", "row=krd"), "unknown row 'krd'; did you mean")
    assert_refused(call("store", "remove", "--where", "method=kd"), "unknown key of --where 'method': use one of")
    assert runs_in(after_grid / "results") == before


@pytest.mark.parametrize(("answer", "left"), [("y\n", 9), ("n\n", 11), ("\x04", 11)])
def test_a_terminal_is_asked(answer: str, left: int, after_grid: Path) -> None:
    ours, its = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kdtable", "store", "remove", "--where", "row=kd"],
        cwd=after_grid,
        env=environment(),
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        os.write(ours, answer.encode())
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        os.close(its)
        os.close(ours)
    assert process.returncode == 0, out
    assert "Remove 2 runs? [y/N]" in out
    assert ("removed 2 runs" in out) == (left == 9)
    assert len(runs_in(after_grid / "results")) == left
