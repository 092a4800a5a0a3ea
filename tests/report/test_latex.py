"""Tables in LaTeX: what they say, a linter of their syntax, and a compilation where there is a TeX."""

import re
import shutil
import subprocess
from dataclasses import replace
from itertools import product
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kdtable.recipes.metrics import METRICS
from kdtable.report.rendering.latex import latex
from kdtable.report.result_table import CELLS, Heading, ResultTable

HOSTILE = r"a_b&c%$#{}~^\ [x]*--y<z>|`ß中"
CRD_1 = (
    "wrn_40_2:wrn_16_2", "wrn_40_2:wrn_40_1", "resnet56:resnet20", "resnet110:resnet20", "resnet110:resnet32",
    "resnet32x4:resnet8x4", "vgg13:vgg8",
)  # fmt: skip
ROWS = ("teacher", "student", "kd", "fitnet", "at", "sp", "crd")


def sample(
    pairs: tuple[str, ...] = CRD_1,
    rows: tuple[str, ...] = ROWS,
    metrics: tuple[str, ...] = ("top1",),
    **changes: dict[str, Any],
) -> ResultTable:
    """A table of made-up numbers. ``changes``: fields of all cells of a row, with "all" for all rows."""
    headings = tuple(Heading(pair, pair, METRICS[metric], *pair.split(":")) for pair, metric in product(pairs, metrics))
    lines = []
    for row, (column, heading) in product(rows, enumerate(headings)):
        mean = 70 + rows.index(row) + column / 10
        line = dict.fromkeys(CELLS, nan) | {
            "row": row, "column": column, "pair": heading.pair, "metric": heading.metric.name, "mean": mean,
            "std": nan if row == "teacher" else 0.25, "n": 3, "asked": 3, "failed": 0, "not_applicable": None,
            "state": "done", "printed": "", "published_only": False, "group": 0, "mark": "", "against": "",
            "notes": (),
        }  # fmt: skip
        lines.append(line | changes.get("all", {}) | changes.get(row, {}))
    cells = pd.DataFrame(lines, columns=list(CELLS))
    captions = ("Legend.", "Recipe: 240 epochs, batch 64, SGD lr 0.05.", "1 failed run is left out.")
    title = "cifar100: top-1 accuracy (%)"
    shown = tuple(METRICS[name] for name in metrics)
    frames = (cells, pd.DataFrame())
    return ResultTable(
        title, "cifar100", headings, rows, *frames, captions=captions, versus="kd", seeds=3, metrics=shown
    )


def every_case() -> ResultTable:
    """Every state of a cell, with labels, heads, captions and notes that LaTeX would trip over."""
    table = sample(
        CRD_1[:3],
        ("teacher", "student", "kd", HOSTILE, "[", "at", "sp", "crd", "ft", "nst", "fsp", "cc"),
        all={"printed": "number", "published": 71.25},
        kd={"printed": "N/A", "published": nan},
        crd={"mark": "best", "against": "above"},
        at={"mark": "tied", "notes": (1, 2)},
        sp={"mark": "second", "against": "below", "std": 1.5},
        ft={"state": "not applicable", "mean": nan, "std": nan, "n": 0, "asked": 0, "not_applicable": "no taps"},
        nst={"state": "not done", "mean": nan, "std": nan, "n": 0},
        fsp={"state": "published only", "published_only": True, "mean": nan, "std": nan, "n": 0, "asked": 0},
        cc={"state": "partly done", "n": 1, "std": nan, "printed": "not available", "published": nan},
    )
    odd = Heading(HOSTILE, f"resnet56:{HOSTILE}", METRICS["top1"], "resnet56", HOSTILE)
    return replace(
        table,
        title=HOSTILE,
        headings=(*table.headings[:2], odd),
        captions=("Legend.", f"Recipe: {HOSTILE}.", f"A note: {HOSTILE}."),
        footnotes=(f"First: {HOSTILE}.", "Second ± 1 — †."),
        versus=HOSTILE,
    )


def rows_of(text: str) -> dict[str, list[str]]:
    """Label to cells, of the first part of a text; small print is the same in every font."""
    text = text.replace(r"\tiny", r"\scriptsize")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    lines = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if line.endswith(r"\\")]
    return {label: cells for label, *cells in lines}


def lint(text: str) -> list[str]:
    """Faults of a text: braces, formulas or environments that do not pair, rows of other columns than their tabular."""
    bare = re.sub(r"\\[\\{}&%$#_]", "", re.sub(r"(?m)^%.*$", "", text))
    found = _unpaired(text)
    if bare.count("{") != bare.count("}") or bare.count("$") % 2:
        found.append("a brace or a formula is left open")
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                spans = [int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
                count = len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans)
                found += [f"{count} columns of {len(columns)}: {line}"] if count != len(columns) else []
    return found


def _unpaired(text: str) -> list[str]:
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return [f"{name} ends, but does not begin"]
    return [f"{name} does not end" for name in opened]


def compiled(text: str, folder: Path) -> str:
    """The log of pdflatex, which must succeed."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex")
    packages = r"\usepackage[T1]{fontenc}\usepackage{lmodern,booktabs,xcolor}"
    source = rf"\documentclass{{article}}{packages}\begin{{document}}{text}\end{{document}}"
    (folder / "table.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_a_cell_has_mark_spread_seeds_arrow_notes_and_published_number() -> None:
    found = {label: cells[0] for label, cells in rows_of(latex([every_case()], published=True)).items()}
    grey = r" \textcolor{gray}{\scriptsize(71.25)}"
    assert found["teacher"] == "70.00" + grey
    assert found["student"] == r"71.00{\scriptsize$\pm$.25}" + grey
    assert found["kd"] == r"72.00{\scriptsize$\pm$.25} \textcolor{gray}{\scriptsize(N/A)}"
    assert found["crd"] == r"\textbf{77.00}{\scriptsize$\pm$.25$\uparrow$}" + grey
    assert found["at"] == r"\textbf{\textit{75.00}}{\scriptsize$\pm$.25}$^{1,2}$" + grey
    assert found["sp"] == r"\underline{76.00}{\scriptsize$\pm$1.50$\downarrow$}" + grey
    assert found["ft"] == "N/A" + grey
    assert found["nst"] == r"---{\scriptsize(0/3)}" + grey
    assert found["fsp"] == r"\dag{}" + grey
    assert found["cc"] == r"81.00{\scriptsize(1/3)} \textcolor{gray}{\scriptsize(not available)}"


def test_an_arrow_points_up_where_a_lower_error_is_better() -> None:
    table = sample(CRD_1[:1], metrics=("top1-error",), crd={"against": "below"}, at={"against": "above"})
    found = rows_of(latex([table]))
    assert found["crd"][0].endswith(r"$\uparrow$}")
    assert found["at"][0].endswith(r"$\downarrow$}")


def test_published_numbers_and_their_package_are_there_on_demand_only() -> None:
    text = latex([every_case()], published=False)
    assert "gray" not in text
    assert "xcolor" not in text
    assert "xcolor" in latex([every_case()], published=True)
    assert "xcolor" not in latex([sample()], published=True)


def test_a_published_number_stands_alone_where_nothing_was_asked_for() -> None:
    nothing = {"mean": nan, "std": nan, "n": 0, "asked": 0, "state": "none"}
    table = sample(all=nothing | {"printed": "number", "published": 71.25})
    assert rows_of(latex([table]))["kd"][0] == r"\textcolor{gray}{\scriptsize(71.25)}"
    assert rows_of(latex([table], published=False))["kd"][0] == "---"


def test_the_caption_says_what_the_numbers_and_their_marks_are() -> None:
    caption = re.search(r"\\caption\{(.*)\}", latex([sample(crd={"mark": "best", "against": "above"})]))
    assert caption is not None
    assert caption[1] == (
        r"cifar100: top-1 accuracy (\%). Mean $\pm$ sample standard deviation over 3 seeds, last epoch; "
        r"bold: best; bold italic: tied with it by the paired 95\,\% t-interval; "
        r"$\uparrow$/$\downarrow$: better/worse than kd by the paired 95\,\% t-interval. "
        "Recipe: 240 epochs, batch 64, SGD lr 0.05."
    )


@pytest.mark.parametrize(("seeds", "words"), [(1, "One seed, best epoch."), (0, "No finished run, best epoch.")])
def test_the_caption_of_few_seeds_speaks_of_no_spread(seeds: int, words: str) -> None:
    table = replace(sample(all={"std": nan, "n": seeds, "asked": seeds}), seeds=seeds, rule="best")
    assert words in latex([table])


def test_notes_stand_below_the_table() -> None:
    text = latex([every_case()])
    assert (
        text.index(r"\bottomrule") < text.index("A note: ") < text.index("$^{1}$ First") < text.index("$^{2}$ Second")
    )
    assert r"Second $\pm$ 1 \textemdash{} \dag{}." in text


def test_heads_are_families_then_teachers_and_students() -> None:
    text = latex([sample()])
    heads = text[text.index(r"\toprule") : text.index(r"\midrule")].splitlines()
    small = [re.findall(r"multicolumn\{(\d)\}\{c\}\{\\scriptsize (.*?)\}(?= [&\\])", line) for line in heads]
    assert small[1] == [("2", "WRN"), ("4", "ResNet"), ("1", "VGG")]
    assert heads[2] == r"\cmidrule(lr){2-3}\cmidrule(lr){4-7}\cmidrule(lr){8-8}"
    assert small[3] == [
        ("2", r"wrn\_40\_2"),
        ("1", "resnet56"),
        ("2", "resnet110"),
        ("1", "resnet32x4"),
        ("1", "vgg13"),
    ]
    assert [text for _, text in small[4]][2:4] == ["resnet20", "resnet20"]
    assert "style" not in text


def test_pairs_of_one_style_come_first_under_a_head_of_their_own() -> None:
    text = latex([sample(("vgg13:MobileNetV2", "vgg13:vgg8", "resnet32x4:ShuffleV1", "resnet56:resnet20"))])
    assert text.index("{2}{c}{\\scriptsize same style}") < text.index("{2}{c}{\\scriptsize different styles}")
    assert re.findall(r"scriptsize (\S* ?\$\\to\$ \S*)\}", text) == [r"VGG $\to$ MobileNet", r"ResNet $\to$ ShuffleNet"]
    assert rows_of(text)["teacher"] == ["70.10", "70.30", "70.00", "70.20"]


def test_the_family_of_several_teachers_is_both_of_theirs() -> None:
    pairs = ("resnet56+resnet110:resnet20", "resnet56+vgg13:resnet20")
    text = latex([sample(pairs)])
    assert re.findall(r"scriptsize (\S* ?\$\\to\$ \S*|[A-Z]\w*)\}", text) == ["ResNet", r"ResNet+VGG $\to$ ResNet"]
    assert r"{\scriptsize resnet56+resnet110} & " in text


def test_each_metric_of_a_pair_has_a_head() -> None:
    text = latex([sample(CRD_1[:2], metrics=("top1", "top5"))])
    assert text.count("top-1 accuracy} &") == 2
    assert r"\multicolumn{2}{c}{\scriptsize wrn\_16\_2}" in text
    assert lint(text) == []


def test_a_wide_table_is_set_smaller_and_a_wider_one_split() -> None:
    assert r"\footnotesize" in latex([sample(CRD_1[:5])])
    arrows = {"all": {"against": "above", "notes": (1,)}}
    smaller = latex([sample(CRD_1)])
    assert smaller.count(r"\begin{tabular}") == 1
    assert "\\centering\n\\scriptsize" in smaller
    split = latex([sample(CRD_1 * 2, **arrows)])
    assert split.count(r"\begin{tabular}") == split.count(r"\bottomrule") > 1
    assert split.count(r"\addtocounter{table}{-1}") == split.count("Continued.") == split.count(r"\begin{table}") - 1
    assert split.count("1 failed run") == 1


def test_a_long_table_is_split_between_rows() -> None:
    text = latex([sample(CRD_1[:2], ("teacher", "student", *(f"m{i}" for i in range(60))))])
    assert text.count(r"\begin{tabular}") == 2
    assert all(f"\nm{i} & " in text for i in range(60))


TABLES = {
    "crd": [sample(crd={"mark": "best", "against": "above"}, all={"mark": "tied", "against": "below"})],
    "every case": [every_case()],
    "wide": [sample(CRD_1 * 2, all={"against": "above", "notes": (1,), "printed": "number", "published": 71.25})],
    "long": [sample(CRD_1[:2], ("teacher", "student", *(f"m{i}" for i in range(60))))],
    "metrics": [sample(CRD_1, metrics=("top1", "top5"))],
    "several": [sample(), sample(("vgg13:MobileNetV2", "resnet56:resnet20"))],
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("published", [False, True])
def test_braces_environments_and_columns_pair(name: str, published: bool) -> None:
    assert lint(latex(TABLES[name], published=published)) == []


@pytest.mark.parametrize("fault", [(r"\textbf{", r"\textbf"), (" & ", " "), (r"\end{table}", ""), ("$\\pm$", "$\\pm")])
def test_the_linter_finds_a_fault(fault: tuple[str, str]) -> None:
    text = latex([sample(crd={"mark": "best"})])
    assert lint(text.replace(*fault, 1))


@pytest.mark.parametrize("name", TABLES)
def test_tables_compile_and_fit_the_page(name: str, tmp_path: Path) -> None:
    log = compiled(latex(TABLES[name], published=True), tmp_path)
    assert "Overfull \\hbox" not in log
    assert "Float too large" not in log
    assert "undefined" not in log
