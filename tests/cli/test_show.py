"""``kdtable show``: all that is known of a run, by its id or its cell."""

import re
import shlex
from contextlib import closing
from pathlib import Path

import pytest

from kdtable.report.sparklines import sparkline
from kdtable.store import Store
from kdtable.store.records import RunRecord
from tests.cli.command import Call, assert_refused, listing, runs_in

CELL = "tiny:kd:resnet14:resnet8"


def stored(folder: Path, row: str = "kd") -> RunRecord:
    with closing(Store(folder / "results", create=False)) as store:
        return next(run for run in store.runs() if run.row == row and run.seed == 1 and run.student == "resnet8")


def test_a_run(after_grid: Path, call: Call) -> None:
    run = stored(after_grid)
    assert run.result is not None
    before = listing(after_grid / "results" / "runs")
    done = call("show", run.id[:10])
    assert (done.code, done.err) == (0, "")
    lines = [re.sub(r"\s+", " ", line.strip()) for line in done.out.splitlines()]
    last = run.metrics_of("last") or {}
    for line in (
        f"id {run.id}",
        "status done",
        "paper and row crd, kd",
        "epochs 2 of 2",
        "attempts 1",
        "batch_size 16",
        "loss 0.1 ce + 0.9 kd",
        "kd_temperature 4",
        f"weights of run {run.protocol.identity['teacher']['run']}",
        f"checksum SHA-256 {run.teacher_sha256}",
        f"source {run.result.code}",
    ):
        assert line in lines, line
    assert f"top-1 accuracy {100 * last['top1']:.2f} %" in done.out
    assert f"negative log-likelihood {last['nll']:.2f} nats" in done.out
    assert "The recipe differs from that of crd: batch_size 16 for 64; epochs 2 for 240" in done.out
    assert listing(after_grid / "results" / "runs") == before


def test_the_command_that_it_shows_makes_the_run(after_grid: Path, call: Call) -> None:
    """Called in the same folder it finds the run done; another seed in its place is trained."""
    run = stored(after_grid, "crd")
    (line,) = [line for line in call("show", run.id).out.splitlines() if line.startswith("  kdtable run ")]
    words = shlex.split(line)[1:]
    before = runs_in(after_grid / "results")
    done = call(*words)
    assert (done.code, done.err) == (0, ""), "nothing is trained"
    assert runs_in(after_grid / "results") == before
    assert call(*(word if word != "1," else "5," for word in words)).code == 0
    new = [run for run_id, run in runs_in(after_grid / "results").items() if run_id not in before]
    assert [(found["row"], found["seed"], found["protocol"]) for found in new] == [
        ("crd", 5, before[run.id]["protocol"])
    ]


def test_a_cell_is_all_its_runs(after_grid: Path, call: Call) -> None:
    found = call("show", CELL).out
    assert re.findall(r"^  id +(\w+)", found, re.MULTILINE) == [
        run_id for run_id, run in runs_in(after_grid / "results").items() if run["row"] == "kd"
    ]
    key = str(next(iter(runs_in(after_grid / "results").values()))["data"])
    assert call("show", f"{key}:kd:res14:res8").out == found, "by the key that reports print, in any spelling"
    plain = call("show", "tiny:student:resnet14:resnet8").out
    assert plain == call("show", "tiny:vanilla:resnet8").out
    assert plain.count("paper and row  crd, vanilla") == 2
    label = "tiny:crd (dim=8, negatives=16):resnet14:resnet8"
    assert call("show", label).out == call("show", "tiny:crd:resnet14:resnet8").out


def test_curves(after_grid: Path, call: Call) -> None:
    run = stored(after_grid)
    with closing(Store(after_grid / "results", create=False)) as store:
        history = store.history(run.id)
    lines = call("show", run.id, "--curves").out.partition("Curves\n")[2].splitlines()
    shown = {" ".join(line.split()[1:3]): line.split() for line in lines[1:]}
    assert shown.keys() >= {"loss train", "term ce", "term kd", "metric top1", "metric train-top1"}
    values = [record.train_loss for record in history]
    expected = [f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values))]
    assert shown["loss train"][3:] == ["2", sparkline(values), *expected]


def test_eighty_columns_hold_it(after_grid: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr("kdtable.cli.console._console", lambda: Console(width=80))
    out = call("show", stored(after_grid, "crd").id, "--curves").out
    wide = [line for line in out.splitlines() if len(line) > 80]
    assert all(line.startswith(("  kdtable run ", "  The recipe", "  Settings")) for line in wide), wide
    assert "…" not in out


def test_what_does_not_exist_is_one_sentence(after_grid: Path, call: Call) -> None:
    ids = sorted(runs_in(after_grid / "results"))
    assert_refused(call("show", f"{ids[0][:-1]}z"), "unknown run", f"did you mean {ids[0]}")
    assert_refused(call("show", "tyny:kd:resnet14:resnet8"), "unknown table 'tyny'; did you mean tiny")
    assert_refused(call("show", "tiny:kt:resnet14:resnet8"), "unknown row of tiny 'kt': use one of at, crd")
    assert_refused(call("show", "tiny:kd:resnet14:resnet20"), "unknown column", "did you mean resnet14:resnet8")
    assert_refused(call("show", "tiny:kd"), "a cell is TABLE:ROW:COLUMN, such as crd-1:kd:resnet56:resnet20")
    assert_refused(call("show", "tiny:teacher:resnet14:resnet8"), "the teacher of a column is no run")
    assert_refused(call("show", "crd-1:kd:resnet56:resnet20"), "the store holds no run of table crd-1")
    assert_refused(call("show", "x", "--results", "none"), "there is no results store")


def test_the_beginning_of_several_ids(after_grid: Path, call: Call) -> None:
    assert_refused(call("show", ""), "unknown run '': use one of")
    firsts = [run[0] for run in runs_in(after_grid / "results")]
    double = next(first for first in firsts if firsts.count(first) > 1) if len(set(firsts)) < len(firsts) else None
    if double is not None:
        assert_refused(call("show", double), f"runs have ids that begin with {double} (", "write more of it")
