"""What is said of a run, from a store's record of it."""

import json
from dataclasses import replace

from kdtable.recipes.record import EpochRecord
from kdtable.report.details import Curve, Details, details_of
from kdtable.report.sparklines import sparkline
from kdtable.report.warnings import measured
from kdtable.store.records import RunRecord
from tests.report.samples import CRD, measured_on, stored, teacher

ORIGIN = {
    "kdtable": "0.1",
    "source": "s1",
    "packages": {"torch": "2.14"},
    "numerics": {"threads": 1, "compile": False},
    "skipped": 0,
}


def of(run: RunRecord, *history: EpochRecord) -> Details:
    return details_of(run, history, measured([measured_on(0.72, claimed=72.34)]))


def section(found: Details, title: str) -> dict[str, str]:
    (lines,) = [section.lines for section in found.sections if section.title == title]
    return dict(lines)


def test_sections_without_content_are_left_out() -> None:
    assert [section.title for section in of(stored("vanilla", status="planned", top1=None)).sections] == [
        "Run",
        "Command",
        "Recipe",
        "Objective",
    ]
    assert [section.title for section in of(stored("kd", provenance=json.dumps([ORIGIN]))).sections] == [
        *("Run", "Command", "Recipe", "Objective", "Teacher", "Metrics", "Environment")
    ]


def test_what_is_said_of_a_failed_run() -> None:
    run = replace(stored("kd", status="failed"), reason="the loss became NaN", attempt=3)
    assert section(of(run), "Run") | {"status": "failed: the loss became NaN", "attempts": "3"} == section(
        of(run), "Run"
    )
    assert section(of(run), "Warnings") == {"": "The loss became NaN or infinite."}


def test_recipe_and_objective_are_whole() -> None:
    found = of(stored("crd+kd", params={"dim": 64}))
    assert section(found, "Recipe") == {
        name: value
        for name, value in section(found, "Recipe").items()
        if name in CRD.recipe.full_identity() and value != "None"
    }
    assert section(found, "Recipe")["milestones"] == "150, 180, 210"
    assert section(found, "Objective")["loss"] == "1 ce + 1 kd + 0.8 crd"
    assert section(found, "Objective")["dim"] == "64"


def test_the_teacher_and_what_it_reached() -> None:
    found = section(of(stored("kd")), "Teacher")
    assert found == {
        "network": "resnet56",
        "weights": f"SHA-256 {teacher().sha256}",
        "top-1 accuracy": "72.00 %",
        "top-5 accuracy": "90.00 %",
        "top-1 error": "28.00 %",
        "top-5 error": "10.00 %",
        "published": "72.34 %",
    }


def test_every_origin_is_there() -> None:
    run = stored("kd", provenance=json.dumps([ORIGIN, ORIGIN | {"source": "s2"}]))
    found = section(of(run), "Environment")
    assert (found["source (1 of 2)"], found["source (2 of 2)"]) == ("s1", "s2")
    assert found["numerics (1 of 2)"] == "compile no, threads 1"
    assert found["packages (2 of 2)"] == "torch 2.14"


def test_curves_go_stage_by_stage() -> None:
    history = [
        EpochRecord("hint", 1, 0.1, 2.0, {}, {"hint": 2.0}, seconds=1.0, cohort_size=1),
        EpochRecord("main", 1, 0.1, 1.5, {"top1": 0.1}, {"ce": 1.5}, seconds=1.0, cohort_size=1, test_loss=3.0),
        EpochRecord("main", 2, 0.05, 1.0, {"top1": 0.2, "nll": 1.1}, {"ce": 1.0}, seconds=1.0, cohort_size=1),
    ]
    assert of(stored("kd"), *history).curves == (
        Curve("hint", "loss", "train", (1,), (2.0,)),
        Curve("hint", "term", "hint", (1,), (2.0,)),
        Curve("hint", "lr", "lr", (1,), (0.1,)),
        Curve("main", "loss", "train", (1, 2), (1.5, 1.0)),
        Curve("main", "loss", "test", (1,), (3.0,)),
        Curve("main", "term", "ce", (1, 2), (1.5, 1.0)),
        Curve("main", "metric", "top1", (1, 2), (0.1, 0.2)),
        Curve("main", "lr", "lr", (1, 2), (0.1, 0.05)),
        Curve("main", "metric", "nll", (2,), (1.1,)),
    )


def test_sparklines() -> None:
    assert sparkline([1, 2, 3, 2]) == "▁▅█▅"
    assert sparkline([5, 5, 5]) == "▁▁▁"
    assert sparkline([]) == ""
    assert sparkline(range(160), 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(1000))) == 16
