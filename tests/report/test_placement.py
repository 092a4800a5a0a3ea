"""Rows with recipes of their own stand beside those that one request trains with them."""

from dataclasses import replace
from typing import Any

import pytest

from kdtable import papers
from kdtable.papers import loader
from kdtable.papers.own import OwnRecipe
from kdtable.recipes.recipe import Recipe
from kdtable.report.recipe_changes import own_changes
from kdtable.report.tables import comparison_table
from kdtable.store.records import RunRecord
from tests.report.samples import cell, framed, only
from tests.report.test_prepared import ROWS, stored

SHARED = Recipe(epochs=100, batch_size=64, lr=0.1, milestones=(30, 60, 90))
OWN = OwnRecipe(SHARED, {"epochs": 90, "milestones": (30, 60), "batch_size": 128, "lr": 0.3})
LONG = replace(SHARED, **OWN.changes)


def test_what_is_a_rows_own_is_put_back() -> None:
    assert OWN.put_back(LONG) == SHARED
    assert OWN.put_back(LONG.scaled(10)) == SHARED.scaled(10)
    assert OWN.put_back(replace(LONG, lr=0.5, nesterov=True)) == replace(SHARED, lr=0.5, nesterov=True)
    assert OWN.put_back(replace(LONG, batch_size=32)) == replace(SHARED, batch_size=32)


def test_milestones_that_move_with_own_epochs_are_put_back_too() -> None:
    own = OwnRecipe(SHARED, {"epochs": 90})
    row = replace(SHARED, epochs=90)
    assert own.put_back(row.scaled(10)) == SHARED.scaled(10) != row.scaled(10)


def asked(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """What a request gives a row: epochs move milestones, all else replaces."""
    scaled = recipe.scaled(changes["epochs"]) if "epochs" in changes else recipe
    return replace(scaled, **{key: value for key, value in changes.items() if key != "epochs"})


REQUESTS: list[dict[str, Any]] = [
    {},
    {"batch_size": 128},
    {"batch_size": 32, "lr": 0.05},
    {"epochs": 10},
    {"epochs": 90},
    {"epochs": 100, "nesterov": True},
    {"epochs": 20, "milestones": (5,), "lr": 0.3},
]


@pytest.mark.parametrize("changes", REQUESTS, ids=str)
def test_a_row_fits_the_others_of_its_request_and_no_others(changes: dict[str, Any]) -> None:
    recipe = asked(LONG, changes)
    same = [asked(LONG, other) == recipe for other in REQUESTS]
    assert [OWN.fits(recipe, asked(SHARED, other)) for other in REQUESTS] == same


def tables(rows: list[RunRecord]) -> list[tuple[int, list[str]]]:
    return [(frame.recipe["batch_size"], sorted(frame.labels)) for frame in framed(*rows)]


WHOLE = sorted(ROWS)


def test_a_batch_size_for_all_rows_leaves_one_table() -> None:
    rows = stored(*ROWS, batch_size=128)
    assert tables(rows) == [(128, WHOLE)]
    own = only(*rows).own
    assert own == {row: ["crop_fill zero for reflect", "nesterov False for True"] for row in ("at", "crd")} | {
        "tofd": ["nesterov False for True"]
    }
    assert any("differs from that of dih: batch_size 128 for 64." in c for c in comparison_table(only(*rows)).captions)


def test_a_run_of_two_requests_stands_in_both_tables() -> None:
    usual, larger = stored(*ROWS), stored(*ROWS, batch_size=128)
    shared = {row.id for row in usual} & {row.id for row in larger}
    assert {row.row for row in usual if row.id in shared} == {"at", "crd", "tofd", "tofd-teacher"}
    both = list({row.id: row for row in [*usual, *larger]}.values())
    assert tables(both) == [(64, WHOLE), (128, WHOLE)]
    first, second = framed(*both)
    assert first.own["at"][0] == "batch_size 128 for 64"
    assert [len(cell(frame, "at", frame.columns[0]).values) for frame in (first, second)] == [1, 1]
    # What was prepared for tofd is told in both.
    assert [sum("TOFD's" in text for text in frame.prepared) for frame in (first, second)] == [1, 1]


def test_other_requests_stand_apart() -> None:
    assert tables([*stored(*ROWS), *stored(*ROWS, batch_size=32)]) == [(64, WHOLE), (32, WHOLE)]
    assert tables(stored("at", "crd", batch_size=128)) == [(64, ["at", "crd"])], "the paper's own, whoever asked for it"


def test_a_failed_run_is_counted_in_every_table_that_it_stands_in() -> None:
    usual = stored("kd", "at")
    failed = replace(usual[1], status="failed")
    comparisons = framed(usual[0], failed, *stored("kd", batch_size=128))
    assert [frame.failed for frame in comparisons] == [1, 1]


def test_rows_with_rates_of_their_own_stand_in_the_pairs_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """And at the rate that a user asked for all rows."""
    dih = papers.load("dih")
    rows = {**dih.rows, "at": replace(dih.rows["at"], recipe={"lr": 0.3, "epochs": 90})}
    real = papers.load
    for module in (papers, loader):
        monkeypatch.setattr(module, "load", lambda name: replace(dih, rows=rows) if name == "dih" else real(name))
    for changes, rate in (({}, 0.1), ({"epochs": 10}, 0.1), ({"lr": 0.3}, 0.3)):
        found = stored("vanilla", "kd", "at", **changes)
        frame = only(*found)
        assert [(column.teacher, column.lr) for column in frame.columns] == [("resnet20", rate)]
        assert sorted(frame.labels) == ["at", "kd", "vanilla"]
        if not changes:
            assert own_changes(found[2], found[2].protocol.identity) == []
