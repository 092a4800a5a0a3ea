"""Tables from frames, and a paper's table beside them."""

import json
import math
from dataclasses import replace

import pytest

from kdtable import papers
from kdtable.report import recipe_changes
from kdtable.report.cells import CellValues
from kdtable.report.tables import (
    Entry,
    ResultTable,
    as_records,
    comparison_table,
    fits_paper,
    paper_table,
    seed_records,
)
from kdtable.store.records import RunRecord
from tests.report.samples import CIFAR100, CRD, TOP1, framed, measured_on, only, stored, teacher

TABLE = CRD.tables["crd-1"]
PAIR = "resnet56:resnet20"


def entry(sheet: ResultTable, row: str, column: str = PAIR) -> Entry:
    return dict(sheet.rows)[row][sheet.columns.index(column)]


def labels(sheet: ResultTable) -> list[str]:
    return [label for label, _ in sheet.rows]


def test_teacher_and_student_come_first() -> None:
    sheet = comparison_table(only(stored("kd"), stored("at"), stored("vanilla", top1=0.6)), "last")
    assert labels(sheet) == ["teacher", "student", "kd", "at"]
    assert entry(sheet, "student").cell.mean == pytest.approx(60.0)


def test_best_and_arrows() -> None:
    runs = [stored("vanilla", 1, 0.99), stored("kd", 1, 0.70), stored("at", 1, 0.65), stored("crd", 1, 0.75)]
    runs.append(stored("crd+kd", 1, 0.70))
    sheet = comparison_table(only(*runs), "last")
    marks = {label: (entry(sheet, label).best, entry(sheet, label).against_kd) for label in labels(sheet)}
    assert marks == {
        "teacher": (False, 0),
        "student": (False, 0),
        "kd": (False, 0),
        "at": (False, -1),
        "crd": (True, 1),
        "crd+kd": (False, 0),
    }


def test_equal_means_are_both_best() -> None:
    sheet = comparison_table(only(stored("kd", 1, 0.7), stored("at", 1, 0.7), stored("crd", 1, 0.6)), "last")
    assert [label for label in labels(sheet) if entry(sheet, label).best] == ["kd", "at"]


def test_a_method_alone_is_not_the_best_and_nothing_is_compared_with_an_absent_kd() -> None:
    sheet = comparison_table(only(stored("at", 1, 0.7), stored("kd", 1, None, status="failed")), "last")
    assert not entry(sheet, "at").best
    assert entry(sheet, "at").against_kd == 0


def test_paper_sheet_has_the_papers_rows_and_columns() -> None:
    sheet = paper_table(CRD, TABLE, only(stored("kd", 1, 0.7), stored("crd+kd", 1, 0.72)), "last", compare=True)
    assert labels(sheet) == ["teacher", "student", *TABLE.rows, "crd+kd"]
    assert sheet.columns == tuple(str(pair) for pair in TABLE.pairs)
    assert entry(sheet, "kd").published == 70.66
    assert entry(sheet, "kd").difference == pytest.approx(70.0 - 70.66)
    assert entry(sheet, "crd+kd").published is None
    assert entry(sheet, "crd+kd").cell.mean == pytest.approx(72.0)
    assert entry(sheet, "sp").cell.mean is None
    assert entry(sheet, "sp").difference is None


def test_not_available_is_not_a_missing_number() -> None:
    sheet = paper_table(CRD, TABLE, None, "last", compare=True)
    missing = entry(sheet, "fsp", "wrn_40_2:wrn_40_1")
    assert missing.published is not None
    assert math.isnan(missing.published)
    assert missing.difference is None
    record = next(r for r in as_records(sheet) if (r["row"], r["pair"]) == ("fsp", "wrn_40_2:wrn_40_1"))
    assert record["published"] is None


def test_without_compare_no_published_number_is_shown() -> None:
    sheet = paper_table(CRD, TABLE, only(stored("kd")), "last", compare=False)
    assert {e.published for _, entries in sheet.rows for e in entries} == {None}
    assert not any("Published" in caption for caption in sheet.captions)


def test_the_source_of_published_numbers_is_named() -> None:
    sheet = paper_table(CRD, TABLE, None, "last", compare=True)
    assert any(TABLE.source in caption for caption in sheet.captions)


def test_student_and_teacher_rows_of_a_papers_table() -> None:
    measured = measured_on(0.73, 0.9)
    frame = only(stored("kd"), stored("vanilla", 1, 0.69), teachers=(measured,))
    sheet = paper_table(CRD, TABLE, frame, "last", compare=True)
    assert entry(sheet, "teacher").difference == pytest.approx(73 - 72.34)
    assert entry(sheet, "student").difference == pytest.approx(69 - 69.06)


def captions(*runs: RunRecord) -> str:
    return "\n".join(paper_table(CRD, TABLE, only(*runs), "last", compare=True).captions)


def test_the_papers_own_recipe_has_no_departure() -> None:
    assert "differs" not in captions(stored("kd"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decay": 1e-4}, "weight_decay 0.0001 for 0.0005"),
        ({"batch_size": 32}, "batch_size 32 for 64"),
        ({"epochs": 24, "milestones": (15, 18, 21)}, "epochs 24 for 240"),
        ({"nesterov": True}, "nesterov True for False"),
        ({"first_epoch_lr": 0.001}, "first_epoch_lr 0.001"),
    ],
)
def test_departures_from_the_papers_recipe_are_named(changes: dict[str, object], words: str) -> None:
    text = captions(stored("kd", recipe=replace(CRD.recipe, **changes)))  # type: ignore[arg-type]
    assert "The recipe differs from the paper's" in text
    assert words in text


def test_another_learning_rate_is_a_departure_too() -> None:
    (departure,) = [
        line for line in captions(stored("kd", recipe=replace(CRD.recipe, lr=0.5))).splitlines() if "differs" in line
    ]
    assert "lr of resnet20 0.5 for 0.05" in departure


def test_a_students_own_rate_is_no_departure() -> None:
    run = stored("kd", student="MobileNetV2", taught_by=teacher("vgg13"), recipe=CRD.recipe_for("MobileNetV2"))
    sheet = paper_table(CRD, CRD.tables["crd-2"], only(run), "last", compare=True)
    assert not any("differs" in caption for caption in sheet.captions)


def test_of_two_rates_the_papers_own_fills_its_table() -> None:
    frame = only(stored("kd", 1, 0.2, recipe=replace(CRD.recipe, lr=0.5)), stored("kd", 1, 0.7))
    assert entry(paper_table(CRD, TABLE, frame, "last", compare=True), "kd").cell.mean == pytest.approx(70.0)


def test_the_caption_counts_seeds_and_names_the_epoch() -> None:
    one = comparison_table(only(stored("kd")), "last").captions[0]
    three = comparison_table(only(*(stored("kd", seed) for seed in (1, 2, 3))), "best").captions[0]
    none = comparison_table(only(stored("kd", top1=None, status="failed")), "last").captions[0]
    assert one.startswith("Top-1 accuracy of the last epoch: one seed; ")
    assert three.startswith("Best top-1 accuracy over epochs: mean ± sample standard deviation over 3 seeds; ")
    assert none.startswith("Top-1 accuracy of the last epoch: no finished run; ")


def test_a_frame_says_how_its_recipe_differs_from_the_nearest_papers() -> None:
    own = comparison_table(only(stored("kd")), "last")
    assert not any("differs" in caption for caption in own.captions)
    (text,) = [
        caption
        for caption in comparison_table(only(stored("kd", recipe=CRD.recipe.scaled(24))), "last").captions
        if "differs" in caption
    ]
    assert text == "The recipe differs from that of crd: epochs 24 for 240; milestones 15, 18, 21 for 150, 180, 210."


def test_the_recipe_is_compared_with_that_of_the_paper_that_was_asked_for() -> None:
    own, other = (papers.load(name).on("imagenet") for name in ("torchdistill", "cd"))
    recipe, rates = replace(own.recipe, batch_size=16), [("tv_resnet18", 0.1)]
    changed = ["batch_size 16 for 192", "lr of tv_resnet18 0.1 for 0.075"]
    assert recipe_changes.nearest(recipe.identity(), rates, "imagenet", {"torchdistill"}) == (own, changed)
    assert recipe_changes.nearest(recipe.identity(), rates, "imagenet", {"forgotten"})[0] == other


def test_a_caption_names_the_file_of_torchvisions_weights() -> None:
    runs = [stored("kd", taught_by=teacher("tv_resnet34", "b627a593".ljust(64, "0"))), stored("kd", student="resnet32")]
    (text,) = [text for text in comparison_table(only(*runs), "last").captions if "torchvision" in text]
    assert text.startswith("Teacher tv_resnet34: torchvision's file resnet34-b627a593.pth;")


def test_several_kinds_of_numerics_are_noted() -> None:
    kinds = [json.dumps([{"source": "aaa", "numerics": {"device": name}}]) for name in ("cpu", "H100")]
    rows = [stored(row, provenance=kind) for row, kind in zip(("kd", "at"), kinds, strict=True)]
    assert "Made under 2 kinds of numerics: device cpu or H100." in comparison_table(only(*rows), "last").captions


def test_failed_runs_are_counted_once() -> None:
    runs = [stored("vanilla", top1=None, status="failed")]
    runs += [stored("kd", taught_by=teacher(name)) for name in ("resnet56", "resnet110")]
    (note,) = [c for c in comparison_table(only(*runs), "last").captions if "failed" in c]
    assert note.startswith("1 failed run")


def test_several_states_of_the_code_are_noted() -> None:
    origins = [json.dumps([{"source": source, "numerics": {}}]) for source in ("aaa", "bbb")]
    runs = [stored("kd", seed, provenance=text) for seed, text in enumerate(origins)]
    assert any("aaa, bbb" in caption for caption in comparison_table(only(*runs), "last").captions)


def test_fits_paper() -> None:
    assert fits_paper(only(stored("kd")), CRD, TABLE)
    assert not fits_paper(only(stored("kd")), CRD, CRD.tables["crd-2"])
    other = replace(CIFAR100, kind="npz", key="x-0", sha256="0" * 64)
    assert not fits_paper(only(stored("kd", data=other)), CRD, TABLE)


def test_seed_records() -> None:
    runs = [stored("kd", seed, 0.7 + seed / 100) for seed in (1, 2)]
    runs += [stored("vanilla", seed, 0.6) for seed in (1, 2, 3)]
    student, kd = seed_records(only(*runs), TOP1)
    assert student[:3] == (PAIR, "vanilla", pytest.approx({1: 60.0, 2: 60.0, 3: 60.0}))
    assert student[3] is None
    assert kd[:3] == (PAIR, "kd", pytest.approx({1: 71.0, 2: 72.0}))
    assert kd[3] is not None
    assert (kd[3].mean, kd[3].standard_error, kd[3].n) == (pytest.approx(11.5), pytest.approx(0.5), 2)


def test_records_have_every_cell() -> None:
    frame = framed(stored("kd"), stored("vanilla", 1, 0.6))[0]
    records = as_records(comparison_table(frame, "last"))
    assert [(r["row"], r["n"], r["asked"], r["seeds"]) for r in records] == [
        ("teacher", 0, 0, {}),
        ("student", 1, 1, pytest.approx({1: 60.0})),
        ("kd", 1, 1, pytest.approx({1: 70.0})),
    ]


def test_difference_needs_both_numbers() -> None:
    assert Entry(CellValues({1: 70.0}), 69.5).difference == 0.5
    assert Entry(CellValues(), 69.5).difference is None
    assert Entry(CellValues({1: 70.0})).difference is None
