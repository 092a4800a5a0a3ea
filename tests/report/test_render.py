"""Tables as Markdown, CSV, JSON and terminal text."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from functools import cache

import pytest

from kdtable.escaping import printable
from kdtable.recipes.metrics import METRICS
from kdtable.report.comparison import Comparison
from kdtable.report.rendering import FORMATS, render
from kdtable.report.result_table import Heading, ResultTable
from kdtable.report.tables import comparison_table, paper_table
from tests.report.samples import CIFAR100, CRD, TOP1, measured_on, only, stored, teacher


@cache
def frame() -> Comparison:
    runs = [stored("vanilla", seed, 0.6 + seed / 1000) for seed in (1, 2, 3)]
    runs += [stored("kd", seed, 0.7 + seed / 1000) for seed in (1, 2, 3)]
    runs += [stored("at", 1, 0.712), stored("at", 2, None, status="failed")]
    runs += [stored("kd", seed, 0.65, taught_by=teacher("resnet110")) for seed in (1, 2)]
    measured = measured_on(0.7234, 0.9)
    return only(*runs, teachers=(measured,))


def sheet() -> ResultTable:
    return comparison_table(frame())


def compared() -> ResultTable:
    return paper_table(CRD, CRD.tables["crd-1"], frame(), compare=True)


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
    assert [row[0] for row in rows] == list(table.rows)
    texts = [text for row in rows for text in row[1:]]
    for text, cell in zip(texts, table.cells.itertuples(), strict=True):
        mean = shown_mean(text)
        assert (mean is None) == math.isnan(cell.mean)
        assert mean is None or mean == pytest.approx(cell.mean, abs=0.005001)
        spread = re.search(r"± (\d+\.\d\d)", text)
        assert (spread is None) == math.isnan(cell.std)
        assert spread is None or float(spread[1]) == pytest.approx(cell.std, abs=0.005001)
        assert text.startswith("**") == (cell.mark in ("best", "tied"))
        assert ("≈" in text) == (cell.mark == "tied")


def test_cells_of_a_table() -> None:
    rows = {row[0]: row[1:] for row in grid(render([sheet()], "markdown"))[1:]}
    assert rows == {
        "teacher": ["72.34", "—"],
        "student": ["60.20 ± 0.10", "60.20 ± 0.10"],
        "kd": ["70.20 ± 0.10", "65.00 ± 0.00 (n=2)"],
        "at": ["71.20 (1/2) ¹", "—"],
    }


def test_published_numbers_stand_in_brackets() -> None:
    rows = {row[0]: row[1:] for row in grid(render([compared()], "markdown"))[1:]}
    assert rows["kd"][2] == "70.20 ± 0.10 [70.66, -0.46]"
    assert rows["kd"][0] == "— [74.92]"
    assert rows["fsp"][1] == "— [N/A]"


def test_a_cell_without_a_finished_run_says_how_many_were_asked_for() -> None:
    failed = comparison_table(only(*(stored("kd", seed, None, status="failed") for seed in (1, 2))))
    assert "— (0/2)" in render([failed], "markdown")


def test_a_method_that_cannot_be_run_on_a_pair() -> None:
    table = comparison_table(only(stored("at", 1, None, status="n/a"), stored("kd", 1, 0.7)))
    assert grid(render([table], "markdown"))[-1] in (["at", "N/A"], ["kd", "70.00"])
    assert "N/A" in render([table], "terminal")


def test_captions_follow_every_form_that_people_read() -> None:
    table = compared()
    for form in ("markdown", "terminal"):
        # A terminal breaks long lines.
        text = " ".join(render([table], form).split())
        for caption in table.captions:
            assert " ".join(caption.split()) in text


def test_csv_has_a_line_per_run() -> None:
    table = compared()
    records = list(csv.DictReader(io.StringIO(render([table], "csv"))))
    assert len(records) == len(table.values) == 3 + 3 + 1 + 3 + 2
    kd = [r for r in records if (r["row"], r["pair"]) == ("kd", "resnet56:resnet20")]
    assert {r["seed"]: float(r["value"]) for r in kd} == pytest.approx({"1": 70.1, "2": 70.2, "3": 70.3})
    assert [r["run"] for r in kd] == [stored("kd", seed).id for seed in (1, 2, 3)]
    about = ("paper", "data", "teacher", "student", "metric", "rule", "epoch", "table")
    assert {tuple(r[name] for name in about) for r in kd} == {
        ("crd", "cifar100", "resnet56", "resnet20", "top1", "last", "240", table.title)
    }


def test_wide_csv_has_the_tables_shape() -> None:
    table = compared()
    records = {r["row"]: r for r in csv.DictReader(io.StringIO(render([table], "csv", wide=True)))}
    assert list(records) == list(table.rows)
    kd = {name: records["kd"][f"resnet56:resnet20 {name}"] for name in ("mean", "std", "n", "published", "difference")}
    assert float(kd["mean"]) == pytest.approx(70.2)
    assert float(kd["std"]) == pytest.approx(0.1)
    assert (kd["n"], kd["published"]) == ("3", "70.66")
    assert float(kd["difference"]) == pytest.approx(-0.46)
    assert records["fsp"]["wrn_40_2:wrn_40_1 mean"] == records["fsp"]["wrn_40_2:wrn_40_1 published"] == ""
    assert "resnet56:resnet20 published" not in render([sheet()], "csv", wide=True)


def test_json() -> None:
    tables = json.loads(render([sheet(), compared()], "json"))
    assert [t["title"] for t in tables] == [sheet().title, compared().title]
    assert tables[0]["columns"] == list(sheet().columns)
    (kd,) = [c for c in tables[0]["cells"] if (c["row"], c["pair"]) == ("kd", "resnet56:resnet20")]
    assert kd["seeds"] == pytest.approx({"1": 70.1, "2": 70.2, "3": 70.3})
    assert kd["mean"] == pytest.approx(70.2)
    json.loads(render([compared()], "json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize("made", [sheet, compared], ids=["frame", "paper"])
def test_terminal_output_cuts_no_number_and_no_name(made: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    table: ResultTable = made()  # type: ignore[operator]
    text = render([table], "terminal")
    assert "…" not in text
    lines = text.splitlines()
    for cell in table.cells.itertuples():
        (line,) = [line for line in lines if re.search(rf"[│┃] {re.escape(cell.row)} +[│┃]", line)]
        assert math.isnan(cell.mean) or f"{cell.mean:.2f}" in line
        assert math.isnan(cell.published) or f"[{cell.published:.2f}" in line
    assert all(column in text for column in table.columns)


def test_several_sheets_follow_each_other() -> None:
    for form in FORMATS:
        text = render([sheet(), replace(sheet(), title="another")], form)
        assert text.index("cifar100") < text.index("another")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_narrow_terminal_gets_groups_of_columns(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = compared()
    lines = render([table], "terminal").splitlines()
    assert max(map(len, lines)) <= int(columns)
    shown = " ".join(line for line in lines if "│" in line or "┃" in line)
    assert all(column in shown for column in table.columns)
    groups = sum(line.startswith("┌") for line in lines)
    assert sum("│ crd " in line for line in lines) == groups > 1


def test_metrics_of_a_pair_stand_below_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal a pair's long name is above its columns, and widens none of them."""
    shown = [METRICS[name] for name in ("top1", "top5", "top1-error", "top5-error")]
    table = comparison_table(frame(), shown)
    monkeypatch.setenv("COLUMNS", "100")
    lines = render([table], "terminal").splitlines()
    assert max(map(len, lines)) <= 100
    pairs = [line for line in lines if line in ("resnet56:resnet20", "resnet110:resnet20")]
    assert pairs == ["resnet56:resnet20", "resnet110:resnet20"]
    heads = [re.split(r" *│ *", lines[lines.index(pair) + 2])[2:-1] for pair in pairs]
    assert heads == 2 * [[metric.words for metric in shown]]
    monkeypatch.setenv("COLUMNS", "300")
    (heading,) = (line for line in render([table], "terminal").splitlines() if "resnet110:resnet20" in line)
    assert heading.count("resnet110:resnet20") == len(shown)  # where there is room, one table has all


def test_seeds_and_paired_differences() -> None:
    table = comparison_table(frame(), versus="vanilla")
    header, *rows = grid(render([table], "markdown", by_seed=True))
    assert header == ["pair", "row", "seed 1", "seed 2", "seed 3", "minus student, paired (95 % interval)"]
    found = {(row[0], row[1]): row[2:] for row in rows}
    assert found["resnet56:resnet20", "student"] == ["60.10", "60.20", "60.30", ""]
    assert found["resnet56:resnet20", "kd"] == ["70.10", "70.20", "70.30", "+10.00 [+10.00, +10.00] (n=3)"]
    assert found["resnet56:resnet20", "at ¹"] == ["71.20", "—", "—", "+11.10 (n=1)"]
    # 4.90 and 4.80: standard error 0.05, and Student's t for one degree of freedom is 12.706
    assert found["resnet110:resnet20", "kd"] == ["65.00", "65.00", "—", "+4.85 [+4.21, +5.49] (n=2)"]
    text = render([table], "terminal", by_seed=True)
    assert "+4.85 [+4.21, +5.49] (n=2)" in text
    assert "│ resnet110:resnet20 │ kd" in text


def test_a_table_without_the_row_to_compare_with_has_no_differences() -> None:
    header, *_ = grid(render([comparison_table(only(stored("at")))], "markdown", by_seed=True))
    assert header == ["pair", "row", "seed 1"]


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


@cache
def named(name: str) -> ResultTable:
    """A table of which every name is ``name``."""
    table = comparison_table(
        only(stored("vanilla", 1, 0.70), stored("kd", 1, 0.70), stored("kd", 1, 0.71, student="resnet32"))
    )
    labels = {"student": name}
    rows = tuple(labels.get(row, row) for row in ("teacher", "student"))
    cells = table.cells[table.cells["row"] != "kd"].assign(row=lambda c: c["row"].replace(labels), asked=1, n=1)
    cells["mean"] = [70.0, 71.0] * 2
    cells["notes"] = [(), (1,)] * 2
    headings = tuple(Heading(text, text, TOP1, text, text) for text in (name, "plain"))
    cells["pair"] = [heading.text for _ in rows for heading in headings]
    plain = table.values[table.values["row"] == "student"]
    values = plain.assign(row=name, pair=name, teacher=name, student=name)
    return replace(
        table, title=name, data=name, headings=headings, rows=rows, cells=cells.reset_index(drop=True), values=values,
        captions=(name,), footnotes=(name,), versus=None, seeds=1,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_a_markdown_table(name: str) -> None:
    text = render([named(name)], "markdown")
    rows = grid(text)
    assert [len(row) for row in rows] == [3, 3, 3]
    assert rows[2][1:] == ["70.00", "71.00 ¹"]
    assert not CONTROLS.search(text)
    assert len(text.splitlines()) == 9
    assert not CONTROLS.search(render([named(name)], "markdown", by_seed=True))


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
        sheet = comparison_table(only(stored("kd", recipe=recipe)))
        told = {record["recipe"] for record in csv.DictReader(io.StringIO(render([sheet], "csv")))}
        assert [text.partition(" 240")[0] for text in told] == [said]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_csv(name: str, wide: bool) -> None:
    text = render([named(name)], "csv", wide=wide)
    assert not CONTROLS.search(text)
    records = list(csv.DictReader(io.StringIO(text)))
    shown = f"'{name}" if name[0] in "=+-@" else printable(name)
    assert {r["table"] for r in records} == {shown}
    if wide:
        assert [r["row"] for r in records] == ["teacher", shown]
        assert f"{shown} mean" in records[0]
    else:
        assert {tuple(r[key] for key in ("row", "pair", "teacher", "student")) for r in records} == {(shown,) * 4}
    assert not any(value.startswith(("=", "+", "@")) for r in records for value in r.values())


def test_negative_numbers_stay_numbers_in_csv() -> None:
    (kd,) = [r for r in csv.DictReader(io.StringIO(render([compared()], "csv", wide=True))) if r["row"] == "kd"]
    assert kd["resnet56:resnet20 difference"].startswith("-0.4")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_breaks_json(name: str) -> None:
    text = render([named(name)], "json")
    assert not CONTROLS.search(text)
    (table,) = json.loads(text)
    assert table["columns"] == [name, "plain"]
    assert table["captions"] == [name]
    assert [cell["notes"] for cell in table["cells"]] == [[], [name]] * 2


def test_no_data_set_breaks_the_table_of_seeds() -> None:
    for name in (name for name in NAMES if "\udcff" not in name):  # which no database takes
        data = replace(CIFAR100, kind="npz", key=name, sha256="0" * 64)
        table = comparison_table(only(stored("vanilla", data=data), stored("kd", data=data)), versus="vanilla")
        text = render([table], "markdown", by_seed=True)
        assert [len(row) for row in grid(text)] == [4, 4, 4]
        assert not CONTROLS.search(text)


def test_footnotes_are_numbered_in_order_and_named_once() -> None:
    below = measured_on(0.7, claimed=72.34)
    failed = [replace(stored("at", seed, None, status="failed"), reason="the loss became NaN") for seed in (1, 2)]
    runs = [stored("vanilla", 1, 0.01), stored("kd", 1, 0.7), *failed]
    table = comparison_table(only(*runs, teachers=(below,)))
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


def test_footnotes_stand_below_the_table_of_seeds_too() -> None:
    runs = stored("vanilla", 1, 0.01), stored("kd", 1, 0.7)
    table = comparison_table(only(*runs, teachers=(measured_on(0.7, claimed=72.34),)))
    assert len(table.footnotes) == 2, "of the teacher, too"
    text = render([table], "markdown", by_seed=True)
    assert [row[1] for row in grid(text)[1:]] == ["student ¹", "kd"]
    assert text.endswith("\n\n- ¹ Never left chance level: seed 1.")
