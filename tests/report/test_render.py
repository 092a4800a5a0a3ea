"""Tables as Markdown, CSV, JSON and terminal text."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from kdtable.escaping import printable
from kdtable.report.cells import CellValues
from kdtable.report.comparison import Comparison
from kdtable.report.render import FORMATS, render, render_seeds
from kdtable.report.tables import Entry, Heading, ResultTable, comparison_table, paper_table
from tests.report.samples import CIFAR100, CRD, TOP1, measured_on, only, stored, teacher


def frame() -> Comparison:
    runs = [stored("vanilla", seed, 0.6 + seed / 1000) for seed in (1, 2, 3)]
    runs += [stored("kd", seed, 0.7 + seed / 1000) for seed in (1, 2, 3)]
    runs += [stored("at", 1, 0.712), stored("at", 2, None, status="failed")]
    runs += [stored("kd", seed, 0.65, taught_by=teacher("resnet110")) for seed in (1, 2)]
    measured = measured_on(0.7234, 0.9)
    return only(*runs, teachers=(measured,))


def sheet() -> ResultTable:
    return comparison_table(frame(), "last")


def compared() -> ResultTable:
    return paper_table(CRD, CRD.tables["crd-1"], frame(), "last", compare=True)


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
    table: ResultTable = made()  # type: ignore[operator]
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
        "at": ["**71.20 (1/2) ↑ ¹**", "—"],
    }


def test_published_numbers_stand_in_brackets() -> None:
    rows = {row[0]: row[1:] for row in grid(render([compared()], "markdown"))[1:]}
    assert rows["kd"][2] == "70.20 ± 0.10 [70.66, -0.46]"
    assert rows["kd"][0] == "— [74.92]"
    assert rows["fsp"][1] == "— [N/A]"


def test_a_cell_without_a_finished_run_says_how_many_were_asked_for() -> None:
    failed = comparison_table(only(*(stored("kd", seed, None, status="failed") for seed in (1, 2))), "last")
    assert "— (0/2)" in render([failed], "markdown")


def test_a_method_that_cannot_be_run_on_a_pair() -> None:
    table = comparison_table(only(stored("at", 1, None, status="n/a"), stored("kd", 1, 0.7)), "last")
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
    table: ResultTable = made()  # type: ignore[operator]
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
    assert found["resnet56:resnet20", "at ¹"] == ["71.20", "—", "—", "+11.10 (n=1)"]
    assert found["resnet110:resnet20", "kd"] == ["65.00", "65.00", "—", "+4.85 ± 0.05 (n=2)"]


NAMES = [
    "a|b",
    "new\nline",
    "[red]name[/red]",
    "bell\a",
    "escape\x1b[31m",
    "eight-bit escape\x9b31m",
    "tab\tstop",
    "right\u202eto left",
    "line\u2028separator",
    "no text\udcff",
    "<img src=x onerror=alert(1)>",
    "[link](javascript:alert(1))",
    "*bold*_slanted_`code`~~gone~~",
    "&lt;b&gt;",
    "# heading",
    "back\\slash",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
]
#: Control characters of both kinds, and what turns the direction of reading.
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def named(name: str) -> ResultTable:
    cells = (Entry(CellValues({1: 70.0}, 1)), Entry(CellValues({1: 71.0}, 1), notes=(1,)))
    rows = (("teacher", cells), (name, cells))
    headings = (Heading(name, name, TOP1), Heading("plain", "plain", TOP1))
    return ResultTable(name, headings, rows, (name,), seeds=1, footnotes=(name,))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_a_markdown_table(name: str) -> None:
    text = render([named(name)], "markdown")
    rows = grid(text)
    assert [len(row) for row in rows] == [3, 3, 3]
    assert rows[2][1:] == ["70.00", "71.00 ¹"]
    assert not CONTROLS.search(text)
    assert len(text.splitlines()) == 9


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    """Every character that could begin something is preceded by a backslash, and no other one is added."""
    label = grid(render([named(name)], "markdown"))[2][0]
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", label) == printable(name)
    assert not re.search(r"(?<!\\)(\\\\)*[\[\]<>`|~]", label)
    assert not re.search(r"(?<!\\)(\\\\)*(\*\w|_slanted_|&lt)", label)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_terminal_output(name: str) -> None:
    text = render([named(name)], "terminal")
    assert not CONTROLS.search(text)
    assert text.count("70.00") == text.count("71.00") == 2
    if name.isprintable():
        assert text.count(name) == 5


def test_csv_says_in_what_a_recipe_is_not_the_papers() -> None:
    for recipe, said in (
        (CRD.recipe, ""),
        (CRD.recipe.scaled(24), "The recipe differs from that of crd: epochs 24 for"),
    ):
        sheet = comparison_table(only(stored("kd", recipe=recipe)), "last")
        told = {record["recipe"] for record in csv.DictReader(io.StringIO(render([sheet], "csv")))}
        assert [text.partition(" 240")[0] for text in told] == [said]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_csv(name: str) -> None:
    text = render([named(name)], "csv")
    assert not CONTROLS.search(text)
    records = list(csv.DictReader(io.StringIO(text)))
    formula = name[0] in "=+-@"
    shown = f"'{name}" if formula else printable(name)
    assert [(r["row"], r["pair"]) for r in records] == [
        ("teacher", shown),
        ("teacher", "plain"),
        (shown, shown),
        (shown, "plain"),
    ]
    assert {r["table"] for r in records} == {shown}
    assert not any(value.startswith(("=", "+", "@")) for r in records for value in r.values())


def test_negative_numbers_stay_numbers_in_csv() -> None:
    records = csv.DictReader(io.StringIO(render([compared()], "csv")))
    assert [float(r["difference"]) for r in records if r["difference"].startswith("-")]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_json(name: str) -> None:
    text = render([named(name)], "json")
    assert not CONTROLS.search(text)
    (table,) = json.loads(text)
    assert table["columns"] == [name, "plain"]
    assert table["captions"] == [name]
    assert [cell["notes"] for cell in table["cells"]] == [[], [name]] * 2


def test_no_data_set_breaks_the_table_of_seeds() -> None:
    for name in NAMES:
        data = replace(CIFAR100, kind="npz", key=name, sha256="0" * 64)
        text = render_seeds([only(stored("vanilla", data=data), stored("kd", data=data))])
        assert [len(row) for row in grid(text)] == [4, 4, 4]
        assert not CONTROLS.search(text)


def test_footnotes_are_numbered_in_order_and_named_once() -> None:
    below = measured_on(0.7, claimed=72.34)
    failed = [replace(stored("at", seed, None, status="failed"), reason="the loss became NaN") for seed in (1, 2)]
    runs = [stored("vanilla", 1, 0.01), stored("kd", 1, 0.7), *failed]
    table = comparison_table(only(*runs, teachers=(below,)), "last")
    expected = (
        "Teacher resnet56 reaches 70.00 %, and its source claims 72.34 %.",
        "Never left chance level: seed 1.",
        "Failed and left out: 2 runs (the loss became NaN or infinite).",
    )
    assert table.footnotes == expected
    text = render([table], "markdown")
    rows = {row[0]: row[1] for row in grid(text)[1:]}
    assert rows == {"teacher": "70.00 ¹", "student": "1.00 ²", "kd": "70.00", "at": "— (0/2) ³"}
    assert [line for line in text.splitlines() if line[2:3] in "¹²³" and line.startswith("- ")] == [
        f"- {number} {note}" for number, note in zip("¹²³", expected, strict=True)
    ]
    lines = " ".join(render([table], "terminal").split())
    assert all(f"{number} {note}" in lines for number, note in zip("¹²³", expected, strict=True))
    (shown,) = json.loads(render([table], "json"))
    assert [cell["notes"] for cell in shown["cells"]] == [[expected[0]], [expected[1]], [], [expected[2]]]
    records = csv.DictReader(io.StringIO(render([table], "csv")))
    assert [record["notes"] for record in records] == [expected[0], expected[1], "", expected[2]]


def test_footnotes_stand_below_the_table_of_seeds_too() -> None:
    text = render_seeds([only(stored("vanilla", 1, 0.01), stored("kd", 1, 0.7))])
    assert [row[1] for row in grid(text)[1:]] == ["vanilla ¹", "kd"]
    assert text.endswith("\n\n- ¹ Never left chance level: seed 1.")
