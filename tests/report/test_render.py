"""Tables as Markdown, CSV, JSON and terminal text."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from kdtable.report.aggregate import Cell, Frame
from kdtable.report.render import FORMATS, render, render_seeds
from kdtable.report.tables import Entry, Sheet, frame_sheet, paper_sheet
from tests.report.samples import CRD, only, stored, teacher


def frame() -> Frame:
    runs = [stored("vanilla", seed, 0.6 + seed / 1000) for seed in (1, 2, 3)]
    runs += [stored("kd", seed, 0.7 + seed / 1000) for seed in (1, 2, 3)]
    runs += [stored("at", 1, 0.712), stored("at", 2, None, status="failed")]
    runs += [stored("kd", seed, 0.65, taught_by=teacher("resnet110")) for seed in (1, 2)]
    measured = {"sha256": teacher().sha256, "data": "cifar100", "top1": 0.7234}
    return only(*runs, teachers=(measured,))


def sheet() -> Sheet:
    return frame_sheet(frame(), "last")


def compared() -> Sheet:
    return paper_sheet(CRD, CRD.tables["crd-1"], frame(), "last", compare=True)


def grid(markdown: str) -> list[list[str]]:
    """The cells of a Markdown table, header first; a ``\\|`` is part of its cell."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert set("".join(rows[1])) <= set("-:")
    return [rows[0], *rows[2:]]


def shown_mean(text: str) -> float | None:
    text = text.strip("*")
    return None if text.startswith("—") else float(text.split()[0])


@pytest.mark.parametrize("made", [sheet, compared], ids=["frame", "paper"])
def test_a_markdown_table_reads_back_to_the_same_numbers(made: object) -> None:
    table: Sheet = made()  # type: ignore[operator]
    header, *rows = grid(render([table], "markdown"))
    assert header == ["", *table.columns]
    assert [row[0] for row in rows] == [label for label, _ in table.rows]
    for row, (_, entries) in zip(rows, table.rows, strict=True):
        for text, entry in zip(row[1:], entries, strict=True):
            mean = shown_mean(text)
            assert (mean is None) == (entry.cell.mean is None)
            assert mean is None or mean == pytest.approx(entry.cell.mean, abs=0.005001)
            spread = re.search(r"± (\d+\.\d\d)", text)
            assert (spread is None) == (entry.cell.std is None)
            assert spread is None or float(spread[1]) == pytest.approx(entry.cell.std, abs=0.005001)
            assert text.startswith("**") == entry.best


def test_cells_of_a_table() -> None:
    rows = {row[0]: row[1:] for row in grid(render([sheet()], "markdown"))[1:]}
    assert rows == {
        "teacher": ["72.34", "—"],
        "student": ["60.20 ± 0.10", "60.20 ± 0.10"],
        "kd": ["70.20 ± 0.10", "65.00 ± 0.00 (n=2)"],
        "at": ["**71.20 (1/2) ↑**", "—"],
    }


def test_published_numbers_stand_in_brackets() -> None:
    rows = {row[0]: row[1:] for row in grid(render([compared()], "markdown"))[1:]}
    assert rows["kd"][2] == "70.20 ± 0.10 [70.66, -0.46]"
    assert rows["kd"][0] == "— [74.92]"
    assert rows["fsp"][1] == "— [N/A]"


def test_a_cell_without_a_finished_run_says_how_many_were_asked_for() -> None:
    failed = frame_sheet(only(*(stored("kd", seed, None, status="failed") for seed in (1, 2))), "last")
    assert "— (0/2)" in render([failed], "markdown")


def test_a_method_that_cannot_be_run_on_a_pair() -> None:
    table = frame_sheet(only(stored("at", 1, None, status="n/a"), stored("kd", 1, 0.7)), "last")
    assert grid(render([table], "markdown"))[-1] in (["at", "N/A"], ["kd", "70.00"])
    assert "N/A" in render([table], "terminal")


def test_captions_follow_every_form_that_people_read() -> None:
    table = compared()
    for form in ("markdown", "terminal"):
        # A terminal breaks long lines.
        text = " ".join(render([table], form).split())
        for caption in table.captions:
            assert " ".join(caption.split()) in text


def test_csv() -> None:
    table = compared()
    records = list(csv.DictReader(io.StringIO(render([table], "csv"))))
    assert len(records) == len(table.rows) * len(table.columns)
    (kd,) = [r for r in records if (r["row"], r["pair"]) == ("kd", "resnet56:resnet20")]
    assert float(kd["mean"]) == pytest.approx(70.2)
    assert float(kd["std"]) == pytest.approx(0.1)
    assert (kd["n"], kd["asked"], kd["failed"], kd["published"]) == ("3", "3", "0", "70.66")
    assert kd["seeds"] == "1:70.1000 2:70.2000 3:70.3000"
    (empty,) = [r for r in records if (r["row"], r["pair"]) == ("fsp", "wrn_40_2:wrn_40_1")]
    assert (empty["mean"], empty["published"], empty["difference"]) == ("", "", "")


def test_json() -> None:
    tables = json.loads(render([sheet(), compared()], "json"))
    assert [t["title"] for t in tables] == [sheet().title, compared().title]
    assert tables[0]["columns"] == list(sheet().columns)
    (kd,) = [c for c in tables[0]["cells"] if (c["row"], c["pair"]) == ("kd", "resnet56:resnet20")]
    assert kd["seeds"] == pytest.approx({"1": 70.1, "2": 70.2, "3": 70.3})
    assert kd["mean"] == pytest.approx(70.2)
    json.loads(render([compared()], "json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize("made", [sheet, compared], ids=["frame", "paper"])
def test_terminal_output_cuts_no_number_and_no_name(made: object) -> None:
    table: Sheet = made()  # type: ignore[operator]
    text = render([table], "terminal")
    assert "…" not in text
    lines = text.splitlines()
    for label, entries in table.rows:
        (line,) = [line for line in lines if re.search(rf"[│┃] {re.escape(label)} +[│┃]", line)]
        for entry in entries:
            if entry.cell.mean is not None:
                assert f"{entry.cell.mean:.2f}" in line
            if entry.published is not None and entry.published == entry.published:
                assert f"[{entry.published:.2f}" in line
    assert all(column in text for column in table.columns)


def test_several_sheets_follow_each_other() -> None:
    for form in FORMATS:
        assert sheet().title in render([sheet(), replace(sheet(), title="another")], form)
        assert "another" in render([sheet(), replace(sheet(), title="another")], form)


def test_seeds_and_paired_differences() -> None:
    header, *rows = grid(render_seeds([frame()]))
    assert header == ["pair", "row", "seed 1", "seed 2", "seed 3", "minus student, paired (± SE)"]
    found = {(row[0], row[1]): row[2:] for row in rows}
    assert found["resnet56:resnet20", "vanilla"] == ["60.10", "60.20", "60.30", ""]
    assert found["resnet56:resnet20", "kd"] == ["70.10", "70.20", "70.30", "+10.00 ± 0.00 (n=3)"]
    assert found["resnet56:resnet20", "at"] == ["71.20", "—", "—", "+11.10 (n=1)"]
    assert found["resnet110:resnet20", "kd"] == ["65.00", "65.00", "—", "+4.85 ± 0.05 (n=2)"]


NAMES = ["a|b", "new\nline", "[red]name[/red]", "bell\a", "escape\x1b[31m", "tab\tstop"]


def named(name: str) -> Sheet:
    cells = (Entry(Cell({1: 70.0}, 1)), Entry(Cell({1: 71.0}, 1)))
    return Sheet("title", (name, "plain"), (("teacher", cells), (name, cells)), ("caption",), seeds=1)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_no_name_breaks_a_markdown_table(name: str) -> None:
    text = render([named(name)], "markdown")
    rows = grid(text)
    assert [len(row) for row in rows] == [3, 3, 3]
    assert rows[2][1:] == ["70.00", "71.00"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_no_name_breaks_terminal_output(name: str) -> None:
    text = render([named(name)], "terminal")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    assert text.count("70.00") == text.count("71.00") == 2
    if name.isprintable():
        assert text.count(name) == 2


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_no_name_breaks_csv_or_json(name: str) -> None:
    records = list(csv.DictReader(io.StringIO(render([named(name)], "csv"))))
    assert [(r["row"], r["pair"]) for r in records] == [
        ("teacher", name),
        ("teacher", "plain"),
        (name, name),
        (name, "plain"),
    ]
    (table,) = json.loads(render([named(name)], "json"))
    assert table["columns"] == [name, "plain"]
