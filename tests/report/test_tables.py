"""Tables from frames, and a paper's table beside them."""

import json
import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.report import recipe_changes
from kdtable.report.result_table import CELLS, VALUES
from kdtable.report.tables import comparison_table, fits_paper, paper_table
from kdtable.store.records import RunRecord
from kdtable.teachers.manifest import published
from tests.report.samples import CIFAR100, CRD, entry, measured_on, only, seeds_of, stored, teacher

TABLE = CRD.tables["crd-1"]
PAIR = "resnet56:resnet20"


def test_teacher_and_student_come_first() -> None:
    sheet = comparison_table(only(stored("kd"), stored("at"), stored("vanilla", top1=0.6)))
    assert list(sheet.rows) == ["teacher", "student", "kd", "at"]
    assert entry(sheet, "student", PAIR).mean == pytest.approx(60.0)


def test_marks_where_the_seeds_support_them() -> None:
    """Paired differences from kd: at -5 always; crd +5 always; rkd by chance; of crd: sp -0.02 on average."""
    gaps = {"kd": (0, 0, 0), "at": (-5, -5.1, -4.9), "crd": (5, 5.1, 4.9), "rkd": (-9, 9, 1), "sp": (4, 5.5, 5.44)}
    noise = (0.0, 0.3, -0.2)
    runs = [stored(row, seed, 0.7 + (gap[seed] + noise[seed]) / 100) for row, gap in gaps.items() for seed in range(3)]
    runs += [stored("vanilla", seed, 0.99) for seed in range(3)]
    sheet = comparison_table(only(*runs))
    found = {row: (entry(sheet, row).mark, entry(sheet, row).against) for row in sheet.rows}
    assert found == {
        "teacher": ("", ""),
        "student": ("", ""),
        "kd": ("second", ""),
        "at": ("", "below"),
        "crd": ("best", "above"),
        "rkd": ("tied", ""),
        "sp": ("tied", "above"),
    }
    assert (entry(sheet, "crd").gap, entry(sheet, "crd").gap_n) == (pytest.approx(5.0), 3)
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t for two degrees of freedom; the differences' deviation is 0.1
    assert entry(sheet, "crd").gap_low == pytest.approx(5 - half)
    assert entry(sheet, "crd").gap_high == pytest.approx(5 + half)


def test_one_seed_supports_no_mark() -> None:
    sheet = comparison_table(only(stored("kd", 1, 0.7), stored("at", 1, 0.8)))
    assert set(sheet.cells["mark"]) == set(sheet.cells["against"]) == {""}
    assert entry(sheet, "at").gap == pytest.approx(10.0)
    assert math.isnan(entry(sheet, "at").gap_low)


def test_rows_with_another_recipe_are_not_ranked_among_the_others() -> None:
    sheet = comparison_table(only(*(stored(row, seed, 0.7 + seed / 100) for row in ("kd", "at") for seed in (1, 2))))
    assert list(sheet.cells["group"]) == [0, 0, 0]


def test_any_row_may_be_compared_with() -> None:
    runs = [stored(row, seed, top1 + seed / 100) for row, top1 in (("vanilla", 0.6), ("at", 0.7)) for seed in (1, 2, 3)]
    frame = only(*runs)
    assert comparison_table(frame).versus is None
    for name, label, gap in (("vanilla", "student", 10.0), ("student", "student", 10.0), ("at", "at", -10.0)):
        sheet = comparison_table(frame, versus=name)
        (other,) = {"student", "at"} - {label}
        assert (sheet.versus, entry(sheet, other).gap) == (label, pytest.approx(gap))
    with pytest.raises(BadRequest, match="unknown row to compare with 'crd'"):
        comparison_table(frame, versus="crd")


def test_paper_sheet_has_the_papers_rows_and_columns() -> None:
    sheet = paper_table(CRD, TABLE, only(stored("kd", 1, 0.7), stored("crd+kd", 1, 0.72)), compare=True)
    assert list(sheet.rows) == ["teacher", "student", *TABLE.rows, "crd+kd"]
    assert sheet.columns == tuple(str(pair) for pair in TABLE.pairs)
    assert entry(sheet, "kd", PAIR).published == 70.66
    assert entry(sheet, "kd", PAIR).difference == pytest.approx(70.0 - 70.66)
    assert math.isnan(entry(sheet, "crd+kd", PAIR).published)
    assert entry(sheet, "crd+kd", PAIR).mean == pytest.approx(72.0)
    assert math.isnan(entry(sheet, "sp", PAIR).mean)
    assert math.isnan(entry(sheet, "sp", PAIR).difference)


def test_not_available_is_not_a_missing_number() -> None:
    sheet = paper_table(CRD, TABLE, None, compare=True)
    missing = entry(sheet, "fsp", "wrn_40_2:wrn_40_1")
    assert (missing.printed, math.isnan(missing.published), math.isnan(missing.difference)) == ("N/A", True, True)


def test_without_compare_no_published_number_is_shown() -> None:
    sheet = paper_table(CRD, TABLE, only(stored("kd")), compare=False)
    assert sheet.cells["published"].isna().all()
    assert not any("Published" in caption for caption in sheet.captions)


def test_the_source_of_published_numbers_is_named() -> None:
    sheet = paper_table(CRD, TABLE, None, compare=True)
    assert any(TABLE.source in caption for caption in sheet.captions)


def test_student_and_teacher_rows_of_a_papers_table() -> None:
    measured = measured_on(0.73, 0.9)
    frame = only(stored("kd"), stored("vanilla", 1, 0.69), teachers=(measured,))
    sheet = paper_table(CRD, TABLE, frame, compare=True)
    assert entry(sheet, "teacher", PAIR).difference == pytest.approx(73 - 72.34)
    assert entry(sheet, "student", PAIR).difference == pytest.approx(69 - 69.06)


def captions(*runs: RunRecord) -> str:
    return "\n".join(paper_table(CRD, TABLE, only(*runs), compare=True).captions)


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
    sheet = paper_table(CRD, CRD.tables["crd-2"], only(run), compare=True)
    assert not any("differs" in caption for caption in sheet.captions)


def test_of_two_rates_the_papers_own_fills_its_table() -> None:
    frame = only(stored("kd", 1, 0.2, recipe=replace(CRD.recipe, lr=0.5)), stored("kd", 1, 0.7))
    assert entry(paper_table(CRD, TABLE, frame, compare=True), "kd", PAIR).mean == pytest.approx(70.0)


def test_the_caption_counts_seeds_and_names_the_epoch() -> None:
    one = comparison_table(only(stored("kd"))).captions[0]
    three = comparison_table(only(*(stored("kd", seed) for seed in (1, 2, 3)), epoch="best")).captions[0]
    none = comparison_table(only(stored("kd", top1=None, status="failed"))).captions[0]
    assert one.startswith("Top-1 accuracy of the last epoch: one seed; ")
    assert three.startswith("Best top-1 accuracy over epochs: mean ± sample standard deviation over 3 seeds; ")
    assert none.startswith("Top-1 accuracy of the last epoch: no finished run; ")


def test_a_frame_says_how_its_recipe_differs_from_the_nearest_papers() -> None:
    own = comparison_table(only(stored("kd")))
    assert not any("differs" in caption for caption in own.captions)
    (text,) = [
        caption
        for caption in comparison_table(only(stored("kd", recipe=CRD.recipe.scaled(24)))).captions
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
    (text,) = [text for text in comparison_table(only(*runs)).captions if "torchvision" in text]
    assert text.startswith("Teacher tv_resnet34: torchvision's file resnet34-b627a593.pth;")


def test_several_kinds_of_numerics_are_noted() -> None:
    kinds = [json.dumps([{"source": "aaa", "packages": {}, "numerics": {"device": name}}]) for name in ("cpu", "H100")]
    rows = [stored(row, provenance=kind) for row, kind in zip(("kd", "at"), kinds, strict=True)]
    assert "Made under 2 kinds of numerics: device cpu or H100." in comparison_table(only(*rows)).captions


def test_failed_runs_are_counted_once() -> None:
    runs = [stored("vanilla", top1=None, status="failed")]
    runs += [stored("kd", taught_by=teacher(name)) for name in ("resnet56", "resnet110")]
    (note,) = [c for c in comparison_table(only(*runs)).captions if "failed" in c]
    assert note.startswith("1 failed run")


def test_several_states_of_the_code_are_noted() -> None:
    origins = [json.dumps([{"source": source, "packages": {}, "numerics": {}}]) for source in ("aaa", "bbb")]
    runs = [stored("kd", seed, provenance=text) for seed, text in enumerate(origins)]
    assert any("aaa, bbb" in caption for caption in comparison_table(only(*runs)).captions)


def test_fits_paper() -> None:
    assert fits_paper(only(stored("kd")), CRD, TABLE)
    assert not fits_paper(only(stored("kd")), CRD, CRD.tables["crd-2"])
    other = replace(CIFAR100, kind="npz", key="x-0", sha256="0" * 64)
    assert not fits_paper(only(stored("kd", data=other)), CRD, TABLE)


def test_paired_differences_over_common_seeds() -> None:
    runs = [stored("kd", seed, 0.7 + seed / 100) for seed in (1, 2)]
    runs += [stored("vanilla", seed, 0.6) for seed in (1, 2, 3)]
    sheet = comparison_table(only(*runs), versus="vanilla")
    assert seeds_of(sheet, "student") == pytest.approx({1: 60.0, 2: 60.0, 3: 60.0})
    assert seeds_of(sheet, "kd") == pytest.approx({1: 71.0, 2: 72.0})
    assert (entry(sheet, "kd").gap, entry(sheet, "kd").gap_n) == (pytest.approx(11.5), 2)
    assert entry(sheet, "kd").gap_high - 11.5 == pytest.approx(12.7062 * 0.5, rel=1e-4)
    assert math.isnan(entry(sheet, "student").gap)


def test_a_line_for_every_cell_and_every_run() -> None:
    sheet = comparison_table(only(stored("kd"), stored("vanilla", 1, 0.6)))
    assert tuple(sheet.cells.columns) == CELLS
    assert [(c.row, c.n, c.asked) for c in sheet.cells.itertuples()] == [
        ("teacher", 0, 0),
        ("student", 1, 1),
        ("kd", 1, 1),
    ]
    assert tuple(sheet.values.columns) == VALUES
    line = sheet.values[sheet.values["row"] == "kd"].to_dict("records")
    assert line == [
        {
            "paper": "crd", "data": "cifar100", "row": "kd", "column": 0, "pair": PAIR, "teacher": "resnet56",
            "student": "resnet20", "metric": "top1", "seed": 1, "run": stored("kd").id, "rule": "last", "epoch": 240,
            "value": pytest.approx(70.0),
        }
    ]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["vanilla", "kd", "at", "crd"]), st.integers(1, 6)),
        st.floats(0, 1, allow_nan=False),
        min_size=1,
    )
)
def test_pivots_have_plain_pythons_means(measured: dict[tuple[str, int], float]) -> None:
    sheet = comparison_table(only(*(stored(row, seed, top1) for (row, seed), top1 in measured.items())))
    for row in sheet.rows[1:]:
        name = "vanilla" if row == "student" else row
        values = [100 * top1 for (of, _), top1 in measured.items() if of == name]
        found = entry(sheet, row)
        assert (found.n, found.mean) == (len(values), pytest.approx(statistics.fmean(values), abs=1e-9))
        if len(values) > 1:
            assert found.std == pytest.approx(statistics.stdev(values), abs=1e-6)
        else:
            assert math.isnan(found.std)
        common = [s for (of, s) in measured if of == name and ("kd", s) in measured]
        gaps = [100 * (measured[name, s] - measured["kd", s]) for s in common]
        if row == "kd" or not gaps:
            assert math.isnan(found.gap)
        else:
            assert (found.gap, found.gap_n) == (pytest.approx(statistics.fmean(gaps), abs=1e-9), len(gaps))


def test_a_teacher_of_other_data_or_normalisation_is_noted() -> None:
    mean = (0.5, 0.5, 0.5)
    (other,) = comparison_table(only(stored("kd", taught_by=teacher(mean=mean)))).footnotes
    assert other == "Teacher resnet56 was trained under another input normalisation than its students."
    assert comparison_table(only(stored("kd"))).footnotes == ()
    known = next(one for one in published().values() if one.sha256 and one.dataset != "cifar100")
    taught = stored("kd", taught_by=teacher(known.network, str(known.sha256).ljust(64, "0")))
    assert comparison_table(only(taught)).footnotes == (f"Teacher {known.network} was trained on {known.dataset}.",)
