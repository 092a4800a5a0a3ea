"""What footnotes say of a cell's runs."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kdtable import papers
from kdtable.provenance import OF_NETWORKS, provenance
from kdtable.report.aggregate import comparisons
from kdtable.store import Store
from kdtable.store.records import LIBRARIES, RunRecord
from kdtable.store.verdicts import FAILED, PASSED, Verdict, keep
from tests.report.samples import (
    cell,
    column,
    fill,
    measured_on,
    only,
    reached,
    stored,
    teacher,
    with_identity,
)


def origin(source: str, **numerics: object) -> dict[str, object]:
    return {"source": source, "packages": {}, "numerics": {"torch": "2.15.0", "threads": 1} | numerics}


def made(*origins: dict[str, object]) -> str:
    return json.dumps(list(origins))


def notes(*rows: RunRecord, label: str = "kd", **options: object) -> list[str]:
    frame = only(*rows, **options)
    return cell(frame, label).notes


def test_equal_runs_need_no_footnote() -> None:
    assert notes(*(stored("kd", seed, provenance=made(origin("s1"))) for seed in (1, 2, 3))) == []


def test_an_average_over_states_of_the_code_says_so() -> None:
    rows = [stored("kd", seed, provenance=made(origin(source))) for seed, source in ((1, "s1"), (2, "s2"), (3, "s1"))]
    assert notes(*rows) == ["Averaged over 2 states of the code: s1, s2."]
    assert only(*rows).sources == {"s1", "s2"}


def test_images_that_could_not_be_read_are_told_of() -> None:
    rows = [stored("kd", seed, provenance=made(origin("s1") | {"skipped": 2})) for seed in (1, 2)]
    assert notes(*rows) == ["Without 2 of the data set's images, which could not be read."]


def test_a_teacher_of_another_data_set_is_told_of() -> None:
    origins = made(origin("s1") | {"teacher_data": "other-0123"})
    assert notes(stored("kd", provenance=origins)) == ["The teacher was trained on another data set, other-0123."]
    assert notes(stored("vanilla", provenance=origins), label="vanilla") == []


def test_a_run_that_two_states_of_the_code_made_says_so() -> None:
    assert notes(stored("kd", provenance=made(origin("s1"), origin("s2")))) == [
        "Averaged over 2 states of the code: s1, s2."
    ]


def test_a_device_that_was_found_wrong_is_named(tmp_path: Path) -> None:
    """By the device and the torch of the runs; where all checks passed nothing is said."""
    rows = [stored("kd", provenance=made(origin("s1", torch="2.15.0", device="NVIDIA H200")))]
    with closing(Store(tmp_path)) as store:
        fill(store, rows)
        for examined, result in (
            ("NVIDIA H200, driver 580.65, torch 2.15.0, kdtable 0.1.0", FAILED),
            ("NVIDIA H200, driver 580.65, torch 2.16.0, kdtable 0.1.0", FAILED),
            ("NVIDIA H200 NVL, driver 580.65, torch 2.15.0, kdtable 0.1.0", FAILED),
            ("cpu (x86_64), torch 2.15.0, kdtable 0.1.0", PASSED),
        ):
            verdicts = [Verdict("memory", result, "", 1.0), Verdict("resuming", PASSED, "", 1.0)]
            keep(tmp_path, examined, verdicts)
        (found,) = comparisons(store, papers.defaults)
    assert cell(found, "kd").notes == [
        "'kdtable doctor' on NVIDIA H200, driver 580.65, torch 2.15.0, kdtable 0.1.0: failed in memory."
    ]


def test_an_average_over_numerics_says_in_what_they_differ() -> None:
    rows = [
        stored("kd", 1, provenance=made(origin("s1"))),
        stored("kd", 2, provenance=made(origin("s1", torch="2.11.0", device="cuda"))),
    ]
    text = "Averaged over 2 kinds of numerics: device none or cuda; torch 2.15.0 or 2.11.0."
    assert notes(*rows) == [text]
    assert len(only(*rows).numerics) == 2


def test_an_average_over_versions_of_packages_says_in_which_they_differ() -> None:
    """Pillow decodes and resizes; a new version may give other bytes. SQLAlchemy changes no result."""
    found = [{"pillow": "11.3.0", "numpy": "2.4", "sqlalchemy": "2.0"}, {"pillow": "12.0", "numpy": "2.4"}]
    rows = [stored("kd", seed, provenance=made(origin("s1") | {"packages": found[seed]})) for seed in (0, 1)]
    assert notes(*rows) == ["Averaged over 2 sets of packages: pillow 11.3.0 or 12.0."]


def test_the_packages_that_change_results_are_recorded() -> None:
    assert {*provenance({})["packages"], *OF_NETWORKS} > set(LIBRARIES)


def test_stages_that_are_left_out_are_told_of() -> None:
    (note,) = notes(with_identity(stored("at"), params={"at_pairing": "first"}), label="at (at_pairing='first')")
    assert note.startswith("The networks differ in their number of stages")


def test_a_continued_run_is_named_by_its_seed() -> None:
    rows = [
        stored("kd", 1, provenance=made(origin("s1"))),
        stored("kd", 2, provenance=made(origin("s1"), origin("s1", threads=2))),
    ]
    assert notes(*rows) == ["Continued under other numerics than begun with: seed 2."]


def test_an_average_over_teachers_says_so() -> None:
    """Two trainings of one teacher's run are one meaning, and may be two files."""
    rows = [
        stored("kd", seed, taught_by=teacher(sha256=digit * 64, run="0123")) for seed, digit in ((1, "a"), (2, "b"))
    ]
    assert rows[0].protocol.id == rows[1].protocol.id
    assert notes(*rows) == ["Averaged over 2 files of its teacher: aaaaaaaa, bbbbbbbb."]
    files = [measured_on(top1, sha256=digit * 64) for digit, top1 in (("a", 0.70), ("b", 0.72))]
    frame = only(*rows, teachers=tuple(files))
    assert reached(frame, column(frame)) == pytest.approx([70.0, 72.0])


def test_what_differs_between_rows_is_no_footnote_of_a_cell() -> None:
    rows = [stored("kd", provenance=made(origin("s1"))), stored("at", provenance=made(origin("s2", threads=2)))]
    frame = only(*rows)
    assert [cell(frame, row).notes for row in ("kd", "at")] == [[], []]
    assert frame.sources == {"s1", "s2"}
    assert len(frame.numerics) == 2


def test_failures_are_told_from_divergence() -> None:
    reasons = [
        "the loss became NaN in epoch 2 of stage main (term at)",
        "the loss became infinite in epoch 1",
        "OSError",
    ]
    rows = [replace(stored("kd", seed, None, status="failed"), reason=reason) for seed, reason in enumerate(reasons)]
    assert notes(stored("kd", 9), *rows) == [
        "Failed and left out: 2 runs (the loss became NaN or infinite).",
        "Failed and left out: 1 run ('kdtable status' says why).",
    ]


def test_a_student_at_chance_level_is_noted() -> None:
    rows = [stored("kd", seed, top1) for seed, top1 in ((1, 0.70), (2, 0.0118), (3, 0.0136), (4, 0.0138))]
    # Chance is 1 %, its standard error on 10,000 images 0.0995 points, and the best of 240 guesses 3.7 of these above.
    assert notes(*rows) == ["Never left chance level: seeds 2, 3."]
    assert notes(stored("kd", 1, 0.01, best=0.5)) == []


def test_a_teacher_below_its_claim_is_noted() -> None:
    for top1, expected in (
        (0.7184, []),
        (0.7183, ["Teacher resnet56 reaches 71.83 %, and its source claims 72.34 %."]),
    ):
        frame = only(stored("kd"), teachers=(measured_on(top1, claimed=72.34),))
        assert cell(frame, "teacher").notes == expected


def test_runs_with_a_cached_teacher_stand_beside_others_and_say_so() -> None:
    rows = [stored("vanilla", 1, 0.6), stored("at", 1, 0.7), stored("kd", 1, 0.7, precision="fp32-cached")]
    frame = only(*rows)
    assert frame.precision == "fp32"
    found = {label: cell(frame, label).notes for label in frame.labels}
    assert found == {"vanilla": [], "at": [], "kd": ["With the teacher's outputs kept on disk (fp32-cached)."]}
