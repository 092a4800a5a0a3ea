"""Errors beside accuracies, several metrics of a pair, and rows that are published only."""

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.papers import Pair, Table
from kdtable.papers.model import TableFile, table_of
from kdtable.recipes.metrics import (
    CLASSIFICATION,
    METRICS,
    Metric,
    is_share,
    metric_of,
    of_branches,
    parse_metrics,
)
from kdtable.report.captions import of_epoch
from kdtable.report.comparison import Comparison
from kdtable.report.rendering import FORMATS, render
from kdtable.report.result_table import ResultTable
from kdtable.report.tables import comparison_table, paper_table
from kdtable.typed import read
from tests.report.samples import CRD, measured_on, only, seeds_of, stored
from tests.report.samples import entry as cell_of
from tests.report.test_render import grid

PAIR = "resnet56:resnet20"
TOP1, TOP5, TOP1_ERROR, TOP5_ERROR = CLASSIFICATION[:4]
ERRORS = (TOP1_ERROR, TOP5_ERROR)
#: Of one pair, as TOML has it; the last row's method is none of ours.
WRITTEN: dict[str, Any] = {
    "title": "errors",
    "source": "s",
    "data": "cifar100",
    "metrics": [metric.name for metric in ERRORS],
    "epoch": "best",
    "pairs": [PAIR],
    "published_only": ["residual-kd"],
    "published": {
        "teacher": [26.5, 8.5],
        "student": [40.0, ""],
        "kd": [31.0, 3.0],
        "at": [math.nan, 3.5],
        "crd": [],
        "residual-kd": [28.46, 9.74],
    },
}
TABLE = table_of("errors", read(TableFile, WRITTEN))
#: The same of a second pair, which nobody ran.
TWO = replace(
    TABLE,
    pairs=(*TABLE.pairs, Pair("resnet110", "resnet32")),
    published={row: (*values, 50.0, 20.0) for row, values in TABLE.published.items()},
)


@pytest.fixture(scope="module")
def frame() -> Comparison:
    """Accuracies of the best epoch: the student 60 and 90 %, kd 70 and 97, at 69 and 98, crd 72 and 96 twice."""
    reached = {"vanilla": (0.60, 0.90), "kd": (0.70, 0.97), "at": (0.69, 0.98)}
    runs = [stored(row, 1, 0.1, best=top1, top5=top5) for row, (top1, top5) in reached.items()]
    runs += [stored("crd", seed, 0.1, best=0.72 + gap, top5=0.96) for seed, gap in ((1, 0.01), (2, -0.01))]
    measured = measured_on(0.735, 0.915)
    return only(*runs, teachers=(measured,), epoch="best")


def shown(frame: Comparison | None, table: Table = TABLE, **options: Any) -> ResultTable:
    return paper_table(CRD, table, frame, "best", **({"compare": True} | options))


def entry(sheet: ResultTable, row: str, metric: str, pair: str = PAIR) -> Any:
    (place,) = (i for i, h in enumerate(sheet.headings) if (h.pair, h.metric) == (pair, METRICS[metric]))
    return cell_of(sheet, row, place)


def test_an_error_is_what_is_missing_from_the_accuracy() -> None:
    frame = only(*(stored("kd", seed, top1, top5=top5) for seed, top1, top5 in ((1, 0.7066, 0.905), (2, 0.71, 0.925))))
    sheet = comparison_table(frame, CLASSIFICATION[:4])
    found = [seeds_of(sheet, "kd", column) for column in range(4)]
    assert found == [{1: 70.66, 2: 71.0}, {1: 90.5, 2: 92.5}, {1: 29.34, 2: 29.0}, {1: 9.5, 2: 7.5}]
    assert [entry(sheet, "kd", metric.name).asked for metric in CLASSIFICATION[:4]] == [2] * 4


@pytest.mark.parametrize("accuracy", ["top1", "top5"])
def test_an_error_converted_twice_is_itself(accuracy: str) -> None:
    share, error = METRICS[accuracy], METRICS[f"{accuracy}-error"]
    assert error.converted(share.converted(8.74, error), share) == 8.74
    assert error.converted(8.74, error) == 8.74
    assert math.isnan(share.converted(math.nan, error))


def test_which_measurements_are_shares() -> None:
    assert [name for name in ("top1", "train-top1", "branch2-top5", "loss", "top1-loss") if is_share(name)] == [
        "top1",
        "train-top1",
        "branch2-top5",
    ]


def test_what_extra_classifiers_reached() -> None:
    measured = {"branch2-top1": 0.2, "top1": 0.9, "branch1-top1": 0.1, "branch4-top1": 0.4}
    assert of_branches(measured, TOP1) == [0.1, 0.2]
    assert of_branches({"top1": 0.9}, TOP1) == []


def test_metrics_are_named_by_name_or_in_words() -> None:
    texts = (*METRICS, *(metric.words for metric in METRICS.values()))
    assert [metric_of(text) for text in texts] == [*METRICS, *METRICS]
    assert parse_metrics(" top5-error,top1 ,top1,", METRICS) == (TOP5_ERROR, TOP1)
    with pytest.raises(BadRequest, match="unknown metric 'top-1'; did you mean top1"):
        parse_metrics("top5,top-1", METRICS)
    with pytest.raises(BadRequest, match="names no metric: use one or several of top1, top5, top1-error"):
        parse_metrics(",", METRICS)


def test_cells_and_published_numbers_of_two_metrics(frame: Comparison) -> None:
    sheet = shown(frame)
    assert entry(sheet, "kd", "top1-error").mean == pytest.approx(30.0)
    assert entry(sheet, "kd", "top5-error").mean == pytest.approx(3.0)
    assert entry(sheet, "kd", "top1-error").difference == pytest.approx(-1.0)
    assert entry(sheet, "kd", "top5-error").difference == pytest.approx(0.0)
    assert entry(sheet, "teacher", "top5-error").difference == pytest.approx(8.5 - 8.5)
    assert entry(sheet, "student", "top5-error").printed == "not available"
    assert entry(sheet, "at", "top1-error").printed == "N/A"
    assert entry(sheet, "at", "top5-error").published == 3.5
    assert all(entry(sheet, "crd", metric.name).printed == "not available" for metric in ERRORS)


def test_marks_follow_the_direction_of_each_metric() -> None:
    """at has the better top-5 accuracy, crd the better top-1 accuracy; both are apart from kd."""
    reached = {"kd": (0.70, 0.97), "at": (0.69, 0.98), "crd": (0.72, 0.96)}
    runs = [
        stored(row, seed, top1 + seed / 1000, top5=top5 + seed / 1000)
        for row, (top1, top5) in reached.items()
        for seed in (1, 2, 3)
    ]
    frame = only(*runs)
    for metrics, up, down in (((TOP1, TOP5), "above", "below"), (ERRORS, "below", "above")):
        sheet = comparison_table(frame, metrics)
        found = {row: [(e.mark, e.against) for e in (entry(sheet, row, m.name) for m in metrics)] for row in reached}
        assert found == {
            "kd": [("second", ""), ("second", "")],
            "at": [("", down), ("best", up)],
            "crd": [("best", up), ("", down)],
        }
        rows = {row[0]: row[1:] for row in grid(render([sheet], "markdown"))[1:]}
        assert [("↑" in text, "↓" in text) for text in rows["at"]] == [(False, True), (True, False)]
    said = {
        name: comparison_table(frame, metrics).captions[0] for name, metrics in (("e", ERRORS), ("a", (TOP1, TOP5)))
    }
    assert "(lower is better)" in said["e"]
    assert "↑/↓ = better/worse than KD" in said["e"]
    assert "best method of its pair;" in said["a"]
    assert "↑/↓ = above/below KD" in said["a"]
    assert "an error is better the lower it is" in comparison_table(frame, (TOP1, TOP5_ERROR)).captions[0]


def test_what_is_the_same_in_all_columns_stands_in_the_title(frame: Comparison) -> None:
    assert shown(frame).title == f"errors, {PAIR}: top-1 error and top-5 error (%)"
    assert shown(frame).columns == ("top-1 error", "top-5 error")
    assert shown(frame, metrics=[TOP5]).title == "errors: top-5 accuracy (%)"
    assert shown(frame, metrics=[TOP5]).columns == (PAIR,)
    other = "resnet110:resnet32"
    assert shown(frame, TWO).title == "errors: top-1 error and top-5 error (%)"
    assert shown(frame, TWO).columns == tuple(f"{p} {m}" for p in (PAIR, other) for m in ("top-1 error", "top-5 error"))
    assert entry(shown(frame, TWO), "kd", "top5-error", other).published == 20.0
    whole = comparison_table(frame, ERRORS)
    assert whole.title == f"cifar100, {PAIR}: top-1 error and top-5 error (%)"
    assert whole.columns == ("top-1 error", "top-5 error")


@pytest.mark.parametrize(
    ("metrics", "epoch", "words"),
    [
        ((TOP1,), "last", "top-1 accuracy of the last epoch"),
        (ERRORS, "last", "top-1 error and top-5 error of the last epoch"),
        ((TOP1_ERROR,), "best", "best top-1 error over epochs"),
        (ERRORS, "best", "best top-1 error over epochs, and the top-5 error of that epoch"),
        ((TOP5,), "best", "top-5 accuracy of the epoch of the best top-1 accuracy"),
        (
            (TOP1,),
            "lowest-loss",
            "top-1 accuracy of the epoch of the lowest loss (distillation included) on the test images",
        ),
    ],
)
def test_the_caption_names_metric_and_epoch(
    frame: Comparison, metrics: tuple[Metric, ...], epoch: str, words: str
) -> None:
    assert of_epoch(metrics, epoch, TOP1) == words
    sheet = comparison_table(replace(frame, rule=epoch), metrics)
    assert sheet.captions[0].startswith(f"{words[0].upper()}{words[1:]}: mean ± ")


def test_published_accuracies_are_shown_as_errors_and_the_caption_says_so(frame: Comparison) -> None:
    crd = CRD.tables["crd-1"]
    sheet = paper_table(CRD, crd, frame, "last", compare=True, metrics=[TOP1_ERROR])
    assert entry(sheet, "kd", "top1-error").published == 29.34
    assert entry(sheet, "fsp", "top1-error", "wrn_40_2:wrn_40_1").printed == "N/A"
    assert "Published as top-1 accuracy; shown is 100 minus it." in sheet.captions
    assert not any("Published as" in caption for caption in shown(frame).captions)
    assert "Published as top-1 error; shown is 100 minus it." in shown(frame, metrics=[TOP1]).captions


def test_numbers_of_another_epoch_or_metric_than_the_papers_are_said_to_be(frame: Comparison) -> None:
    last = paper_table(CRD, TABLE, frame, "last", compare=True)
    assert "The paper's numbers are those of the best epoch." in last.captions
    assert not any("those of" in caption for caption in shown(frame).captions)
    both = paper_table(CRD, CRD.tables["crd-1"], frame, "last", compare=True, metrics=[TOP1, TOP5])
    assert "The table has no top-5 accuracy." in both.captions
    assert entry(both, "kd", "top5").printed == ""


def test_rows_that_are_published_only_are_not_taken_for_unfinished(frame: Comparison) -> None:
    for compare, text in ((True, "† [28.46]"), (False, "†")):
        sheet = shown(frame, compare=compare)
        assert set(sheet.cells.loc[sheet.cells["published_only"], "row"]) == {"residual-kd"}
        assert "† = published only" in sheet.captions[0]
        rows = {row[0]: row[1:] for row in grid(render([sheet], "markdown"))[1:]}
        assert rows["residual-kd"][0] == text
        assert "†" in next(line for line in render([sheet], "terminal").splitlines() if "residual-kd" in line)
        states = {r["row"]: r["state"] for r in json.loads(render([sheet], "json"))[0]["cells"]}
        shape = {r["row"]: r for r in csv.DictReader(io.StringIO(render([sheet], "csv", wide=True)))}
        assert shape["residual-kd"].get("top-1 error published", "none") == ("28.46" if compare else "none")
        assert states["residual-kd"] == "published only"
        assert states["kd"] == "done"
    assert not any("†" in caption for caption in comparison_table(frame).captions)


def test_a_row_that_was_run_all_the_same_shows_its_number(frame: Comparison) -> None:
    table = replace(TABLE, published_only=("kd", "residual-kd"))
    assert entry(shown(frame, table), "kd", "top1-error").mean == pytest.approx(30.0)
    assert not entry(shown(frame, table), "kd", "top1-error").published_only
    assert entry(shown(None, table), "kd", "top1-error").published_only


def test_the_state_of_a_cell() -> None:
    runs = [stored("kd"), stored("at"), stored("at", 2, None, status="planned"), stored("sp", 1, None, status="failed")]
    runs += [stored("fsp", 1, None, status="n/a"), stored("kd", student="resnet32")]
    sheet = comparison_table(only(*runs))
    states = [cell_of(sheet, row).state for row in ("kd", "at", "sp", "fsp")]
    assert states == ["done", "partly done", "not done", "not applicable"]
    assert cell_of(sheet, "at", 1).state == "none"


def test_records_name_pair_and_metric(frame: Comparison) -> None:
    (table,) = json.loads(render([shown(frame)], "json"))
    records = {(r["row"], r["pair"], r["metric"]): r for r in table["cells"]}
    assert records["crd", PAIR, "top1-error"]["seeds"] == pytest.approx({"1": 27.0, "2": 29.0})
    assert records["crd", PAIR, "top1-error"]["runs"] == {str(seed): stored("crd", seed).id for seed in (1, 2)}
    assert records["crd", PAIR, "top1-error"]["std"] == pytest.approx(math.sqrt(2))
    assert records["kd", PAIR, "top1-error"]["difference"] == pytest.approx(-1.0)
    assert len(records) == 2 * len(shown(frame).rows)


def test_every_published_table_can_be_printed() -> None:
    for paper in map(papers.load, papers.names()):
        for table in paper.tables.values():
            sheet = paper_table(paper, table, None, table.epoch, compare=True)
            assert len(sheet.cells) == len(table.pairs) * len(table.metrics) * (2 + len(table.rows))
            assert set(sheet.cells.loc[sheet.cells["state"] == "published only", "row"]) == set(table.published_only)
            rows = grid(render([sheet], "markdown"))[1:]
            assert all(
                ("†" in cell) == (row in table.published_only)
                for row, cells in zip(sheet.rows, rows, strict=True)
                for cell in cells[1:]
            )


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_shows_both_errors(form: str, frame: Comparison) -> None:
    text = render([shown(frame, TWO)], form)
    assert "top-1 error and top-5 error" in text
    if form in ("markdown", "terminal"):
        assert "30.00 (n=1) [31.00, -1.00]" in text
        assert "3.00 (n=1) [3.00, +0.00]" in text
        assert "ours minus it (below 0 is better)." in " ".join(text.split())


def test_every_seed_of_every_metric(frame: Comparison) -> None:
    sheet = comparison_table(frame, ERRORS, versus="vanilla")
    top1, top5 = render([sheet], "markdown", by_seed=True).split("\n\n**")
    assert top1.startswith("**cifar100: best top-1 error over epochs (%)**")
    assert top5.startswith("cifar100: top-5 error of the epoch of the best top-1 accuracy (%)**")
    rows = {row[1]: row[2:] for row in grid(top1)}
    assert rows["row"] == ["seed 1", "seed 2", "minus student, paired (95 % interval; below 0 is better)"]
    assert rows["crd"] == ["27.00", "29.00", "-13.00 (n=1)"]
    assert {row[1]: row[2] for row in grid(top5)}["crd"] == "4.00"


def test_a_difference_of_nothing_has_no_minus() -> None:
    table = replace(TABLE, published={**TABLE.published, "kd": (30.0 + 1e-12, 3.0)})
    sheet = paper_table(CRD, table, only(stored("kd", 1, 0.7, top5=0.97)), "last", compare=True)
    assert "[30.00, +0.00]" in render([sheet], "markdown")
