"""Runs and epochs as DataFrames."""

from pathlib import Path

import pytest

from kdtable.recipes.record import EpochRecord
from kdtable.report.frames import EPOCHS, RUNS, VALUES, epochs_frame, runs_frame, values_frame
from kdtable.store import Store
from kdtable.store.maintenance.bulk import WholeRun, add_whole
from kdtable.store.records import packed
from tests.report.samples import stored


def test_a_line_per_run() -> None:
    runs = [stored("kd", 1), stored("vanilla", 2), stored("at", 1, None, status="n/a")]
    frame = runs_frame(runs)
    assert tuple(frame.columns) == RUNS
    assert list(frame["run"]) == [run.id for run in runs]
    assert list(frame["pair"]) == ["resnet56:resnet20", "resnet20", "resnet56:resnet20"]
    assert list(frame["status"]) == ["done", "done", "n/a"]
    assert list(frame["protocol"]) == [run.protocol.id for run in runs]
    assert list(frame["seconds"]) == [0.0, 0.0, 0.0]
    assert tuple(runs_frame([]).columns) == RUNS


def test_a_line_per_finished_run_and_metric() -> None:
    runs = [stored("kd", 1, 0.7, best=0.75, top5=0.9), stored("kd", 2, 0.5, status="failed")]
    frame = values_frame(runs, "best")
    assert tuple(frame.columns) == VALUES
    assert dict(zip(frame["metric"], frame["value"], strict=True)) == pytest.approx(
        {"top1": 75.0, "top5": 90.0, "top1-error": 25.0, "top5-error": 10.0}
    )
    assert set(frame["run"]) == {runs[0].id}
    assert set(frame["epoch"]) == {240}
    assert values_frame(runs, "lowest-loss").empty


def test_a_line_per_number_of_an_epoch(tmp_path: Path) -> None:
    run = stored("kd")
    assert run.result is not None
    history = [
        EpochRecord("main", 1, 0.1, 2.5, {"top1": 0.3}, {"ce": 1.5, "kd": 1.0}, 9.0, 1, test_loss=2.0),
        EpochRecord("main", 2, 0.05, 1.5, {"top1": 0.4}, {"ce": 1.0, "kd": 0.5}, 8.0, 1),
    ]
    store = Store(tmp_path)
    with store.database.write() as db:
        add_whole(db, [WholeRun(run, [run.result], {run.result.code: packed(history)})])
    frame = epochs_frame(store, [run.id, "unknown"])
    assert tuple(frame.columns) == EPOCHS
    found = {(line.epoch, line.kind, line.name): line.value for line in frame.itertuples()}
    assert found == {
        (1, "metric", "top1"): 0.3, (1, "term", "ce"): 1.5, (1, "term", "kd"): 1.0, (1, "loss", "train"): 2.5,
        (1, "loss", "test"): 2.0, (1, "lr", "lr"): 0.1, (1, "seconds", "seconds"): 9.0,
        (2, "metric", "top1"): 0.4, (2, "term", "ce"): 1.0, (2, "term", "kd"): 0.5, (2, "loss", "train"): 1.5,
        (2, "lr", "lr"): 0.05, (2, "seconds", "seconds"): 8.0,
    }  # fmt: skip
