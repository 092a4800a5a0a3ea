"""Rows of a paper whose rows have recipes of their own, and learn from what other runs made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdtable import papers
from kdtable.data.spec import DataSpec
from kdtable.execution.run_grid import store_row
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.request import DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.report.comparison import Comparison
from kdtable.report.recipe_changes import own_changes
from kdtable.report.rendering import render
from kdtable.report.tables import comparison_table, paper_table
from kdtable.store.records import RunRecord
from tests.asking import asked
from tests.report.samples import entry, framed, made, measured_on, only
from tests.report.samples import reached as sample_reached

DIH = papers.load("dih")
#: With a pair that is quick to build.
SMALL_TABLE = replace(
    DIH.tables["dih-cifar10"],
    pairs=(papers.Pair("resnet20", "resnet8"),),
    published=dict.fromkeys(DIH.tables["dih-cifar10"].published, (None,)),
)
ROWS = ("vanilla", *SMALL_TABLE.rows)


def found(name: str, data: DataSpec) -> FileTeacher:
    return FileTeacher(name, data.mean, data.std, name.ljust(64, "0"), Path(name))


def trained(cell: PlannedRun, top1: float) -> RunRecord:
    """The cell's run as the store has it when it is done."""
    branches = {f"branch{number}-top1": number / 10 for number in (1, 2, 3)} if "+" in cell.run.student else {}
    return made(store_row(cell), top1=top1, **branches)


def reached(run: RunRecord) -> str:
    return f"{100 * (run.metrics_of('last') or {})['top1']:.2f}"


def stored(*methods: str, **changes: Any) -> list[RunRecord]:
    """The runs of rows, and what they need, each with an accuracy of its own from 50 % on."""
    request = Request(["resnet20:resnet8"], methods, [1], "dih", data=DataRequest("cifar10"))
    cells = resolve(asked(request, **changes), found)
    return [trained(cell, (50 + number) / 100) for number, cell in enumerate(cells)]


@pytest.fixture(scope="module")
def frame() -> Comparison:
    return only(*stored(*ROWS))


def test_rows_with_recipes_of_their_own_stand_in_one_frame(frame: Comparison) -> None:
    assert frame.recipe == {key: value for key, value in DIH.recipe.identity().items() if key != "lr"}
    assert sorted(frame.labels) == sorted(ROWS), "the assistant's own run is one of kd"
    own = ["batch_size 128 for 64", "crop_fill zero for reflect", "nesterov False for True"]
    tofd = {"tofd": ["batch_size 128 for 64", "nesterov False for True"], "tofd-teacher": ["batch_size 128 for 64"]}
    assert frame.own == {"at": own, "crd": own, **tofd}
    captions = comparison_table(frame).captions
    assert "Other recipe of tofd: batch_size 128 for 64; nesterov False for True." in captions
    assert not any("differs" in caption for caption in captions)


def test_they_do_not_differ_from_their_paper() -> None:
    for row in stored(*ROWS):
        assert own_changes(row, row.protocol.identity) == [], row.row
    for row in stored("dih", "tofd", reading="paper"):
        assert own_changes(row, row.protocol.identity) == [], row.row
    for row in stored("crd", "dih", epochs=100):
        changes_of = own_changes(row, row.protocol.identity)
        assert changes_of == ["epochs 100 for 200", "milestones 30, 60, 90 for 60, 120, 180"], row.row
    (unknown,) = stored("kd")
    assert own_changes(replace(unknown, paper="other"), unknown.protocol.identity) == ["paper other is not known here"]


def test_what_learned_from_something_made_stands_under_the_pairs_teacher(frame: Comparison) -> None:
    columns = [(column.teacher, column.student) for column in frame.columns]
    assert columns == [("resnet20", "resnet8"), ("resnet20", "resnet14")]
    assert {column.origin for column in frame.columns} == {"resnet20".ljust(64, "0")}
    sheet = comparison_table(frame)
    assert sheet.columns == ("resnet20:resnet8", "resnet20:resnet14")
    for number, row in enumerate(ROWS):
        cell = entry(sheet, "student" if row == "vanilla" else row, "resnet20:resnet8")
        assert cell.mean == pytest.approx(50 + number), row
        assert cell.notes == ()


def test_what_was_prepared_is_told_with_its_accuracies(frame: Comparison) -> None:
    runs = {run.row: run for run in stored(*ROWS) if run.seed == DIH.seeds[0]}
    heads, classifiers, assistant = (runs[row] for row in ("heads", "tofd-teacher", "kd"))
    accuracies = "10.00, 20.00, 30.00 %, shallow to deep; its own classifier"
    expected = {
        f"Heads of resnet20 (run {heads.id[:8]}, seed 30): {accuracies} {reached(heads)} %.",
        f"Classifiers of TOFD's resnet20 (run {classifiers.id[:8]}, seed 30): {accuracies} {reached(classifiers)} %.",
        f"takd of resnet8 learned from resnet14 (run {assistant.id[:8]}), and that from resnet20.",
    }
    assert set(frame.prepared) == expected
    assert expected <= set(comparison_table(frame).captions)
    unfinished = [replace(run, status="running") if run.row == "heads" else run for run in stored("dih")]
    assert only(*unfinished).prepared == []


def test_prepared_runs_alone_make_a_table_without_columns() -> None:
    sheet = comparison_table(only(*stored("heads")))
    assert (sheet.columns, sheet.rows) == ((), ("teacher",))
    assert "SGD x 0.2 after epochs 60, 120, 180" in sheet.captions[1]
    assert sheet.captions[-1].startswith("Heads of resnet20")


def test_assistants_are_told_apart() -> None:
    rows = [row for name in ("resnet14", "resnet32") for row in stored("takd", overrides=[f"assistant={name}"])]
    frame = only(*rows)
    taught = [label for label in frame.labels if label.startswith("takd")]
    assert len(taught) == 2
    assert all(label.startswith("takd #") for label in taught)
    assert all(any(f"from {name} (run" in note for note in frame.prepared) for name in ("resnet14", "resnet32"))
    assert any("in an assistant" in caption for caption in comparison_table(frame).captions)


def test_the_teachers_own_accuracy_is_shown_though_another_network_taught() -> None:
    measured = measured_on(0.93, sha256="resnet20".ljust(64, "0"), data="cifar10")
    runs = stored("dih", "tofd")
    found = [run.protocol.identity for run in runs if run.row == "dih"]
    others = [
        measured_on(0.5, sha256=identity["teacher"]["run"], data="cifar10", network="resnet20+heads")
        for identity in found
    ]
    frame = only(*runs, teachers=(measured, *others))
    (column,) = frame.columns
    assert sample_reached(frame, column) == pytest.approx([93.0])


def test_a_reading_stands_in_a_table_of_its_own() -> None:
    code, paper = framed(*stored("kd", "dih"), *stored("kd", "dih", reading="paper"))
    assert code.labels == ["kd", "dih"]
    assert paper.labels == ["kd", "dih (teachers='mean')"]


def test_numbers_that_could_not_be_read_are_not_available(frame: Comparison) -> None:
    sheet = paper_table(DIH, SMALL_TABLE, frame, "last", compare=True)
    assert list(sheet.rows) == ["teacher", "student", *SMALL_TABLE.rows]
    assert set(sheet.cells["printed"]) == {"not available"}
    assert sheet.cells["published"].isna().all()
    assert sheet.cells["difference"].isna().all()
    assert entry(sheet, "dih").mean == pytest.approx(50 + ROWS.index("dih"))
    plain = paper_table(DIH, SMALL_TABLE, frame, "last", compare=False)
    assert set(plain.cells["printed"]) == {""}


def test_a_row_that_the_paper_lacks_has_no_number_to_be_read() -> None:
    sheet = paper_table(DIH, SMALL_TABLE, only(*stored("dml", "dih")), "last", compare=True)
    assert (entry(sheet, "dml").printed, entry(sheet, "dih").printed) == ("", "not available")


@pytest.mark.parametrize("form", ["terminal", "markdown"])
def test_not_available_is_written_out(frame: Comparison, form: str) -> None:
    partly = replace(SMALL_TABLE, published={**SMALL_TABLE.published, "kd": (91.5,), "tofd": (float("nan"),)})
    text = render([paper_table(DIH, partly, frame, "last", compare=True)], form)
    lines = {line.strip("|│ ").split(" ")[0]: line for line in text.splitlines() if line.startswith(("|", "│"))}
    assert "not available" in lines["dih"]
    assert "91.5" in lines["kd"]
    assert "not available" not in lines["kd"] + lines["tofd"]
