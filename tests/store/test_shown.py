"""What tables show of runs, read by column."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from kdtable.recipes.metrics import CLASSIFICATION
from kdtable.store import Damaged, Store
from kdtable.store.schema import results
from kdtable.store.shown import ShownRuns, judged_runs, metrics_of_tasks, shown_runs
from tests.report.samples import fill, stored


def test_columns_are_those_of_the_records(store: Store) -> None:
    runs = [
        stored("kd", 2, 0.7, best=0.75, top5=0.9),
        stored("kd", 1, None, status="failed"),
        stored("vanilla", 1, 0.6),
    ]
    fill(store, runs)
    for rule in ("last", "best"):
        found = shown_runs(store, rule, ["top1", "top5"])
        expected = ShownRuns.of(store.runs())
        for name in ("id", "kind", "kinds", "made", "provenances", "seed", "status", "reason", "best"):
            assert list(getattr(found, name)) == list(getattr(expected, name)), name
        assert [run.id for run in found.firsts] == [run.id for run in expected.firsts] == [runs[0].id, runs[2].id]
        metrics = [run.metrics_of(rule) or {} for run in store.runs()]
        assert found.values == {name: tuple(one.get(name) for one in metrics) for name in ("top1", "top5")}
        assert list(found.epoch) == [240, None, 240]
        assert not any(found.instead[i] for i in (0, 2))


def test_kinds_differ_in_protocol_row_teacher_or_test_images(store: Store) -> None:
    runs = [stored("vanilla"), stored("kd", 2), replace(stored("kd", 1), test_images=7), stored("kd", 3)]
    fill(store, runs)
    for found in (shown_runs(store), judged_runs(store)):
        assert list(found.kind) == [0, 1, 2, 1]
        assert [(found.firsts[group].id, images) for group, _, images in found.kinds] == [
            (runs[0].id, runs[0].test_images),
            (runs[1].id, runs[1].test_images),
            (runs[1].id, 7),
        ]


def test_the_last_epoch_stands_for_one_that_was_not_measured(store: Store) -> None:
    judged, other = stored("kd", 1, 0.7), stored("kd", 2, 0.6)
    assert judged.result is not None
    lowest = {**judged.result.chosen, "lowest-loss": (7, {"top1": 0.5})}
    fill(store, [replace(judged, result=replace(judged.result, chosen=lowest)), other])
    found = shown_runs(store, "lowest-loss", ["top1", "top5"])
    assert list(found.epoch) == [7, 240]
    assert [bool(one) for one in found.instead] == [False, True]
    # What was not measured in the epoch of the lowest loss is not taken from another.
    assert found.values == {"top1": (0.5, 0.6), "top5": (None, 0.6)}


def test_only_some_runs_and_an_empty_store(store: Store) -> None:
    assert not shown_runs(store).id
    assert not judged_runs(store).id
    runs = [stored("kd", seed) for seed in (1, 2, 3)]
    fill(store, runs)
    assert list(shown_runs(store, only=[runs[1].id, "unknown"]).id) == [runs[1].id]
    assert shown_runs(store).values.keys() == {"top1"}
    assert metrics_of_tasks(store) == {metric.name: metric for metric in CLASSIFICATION}


def test_epochs_that_cannot_be_read_are_damage(store: Store) -> None:
    fill(store, [stored("kd")])
    with store.database.write() as db:
        db.execute(sa.update(results).values(chosen="{no JSON"))
    with pytest.raises(Damaged, match="a run cannot be read"):
        shown_runs(store)
