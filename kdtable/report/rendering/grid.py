"""Tables as grids of text, which terminal and Markdown share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from kdtable.report.captions import of_epoch, with_unit
from kdtable.report.frames import lines_of
from kdtable.report.result_table import ResultTable

#: Arrows by the direction against the baseline: above is an improvement.
ARROWS: Final = {"above": " ↑", "below": " ↓", "": ""}
WORSE_ABOVE: Final = {"above": " ↓", "below": " ↑", "": ""}
#: Sign of a cell that is tied with the best. Both are bold.
TIED: Final = " ≈"
#: Superscript digits of footnotes.
RAISED: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts.

    Attributes:
        title: above it.
        headings: of the columns, each a tuple of lines; the first ``keys`` columns name a row.
        rows: a text per column.
        marks: "best" or "tied", by row and column; such cells are bold.
        captions: sentences below it.
        keys: number of columns that name a row.
        baselines: number of rows at the top that are no methods.
    """

    title: str
    headings: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    marks: Mapping[tuple[int, int], str]
    captions: tuple[str, ...]
    keys: int = 1
    baselines: int = 0


def grid(table: ResultTable) -> Grid:
    """A table as it is printed: mean ± standard deviation, marks, and the published number in brackets."""
    texts = [_text(cell, table) for cell in lines_of(table.cells)]
    width = len(table.headings)
    rows = [(label, *texts[i * width : (i + 1) * width]) for i, label in enumerate(table.rows)]
    place = {label: number for number, label in enumerate(table.rows)}
    marked = table.cells[table.cells["mark"].isin(["best", "tied"])]
    marks = {(place[cell.row], cell.column + 1): cell.mark for cell in lines_of(marked)}
    headings = [("",), *(_lines(heading.text, heading.pair) for heading in table.headings)]
    captions = (*table.captions, *_compared(table), *numbered(table.footnotes))
    baselines = sum(label in ("teacher", "student") for label in table.rows)
    return Grid(table.title, tuple(headings), tuple(rows), marks, captions, baselines=baselines)


def seed_grids(table: ResultTable) -> list[Grid]:
    """Every seed of a table, and paired differences from its row ``versus``: a grid for each metric."""
    return [
        _seed_grid(table, metric.name, with_unit(of_epoch([metric], table.rule, table.main), [metric]), better)
        for metric in table.metrics
        for better in ["" if metric.higher_is_better else "; below 0 is better"]
    ]


def _seed_grid(table: ResultTable, metric: str, title: str, better: str) -> Grid:
    cells = table.cells[(table.cells["metric"] == metric) & (table.cells["asked"] > 0)]
    cells = cells[cells["row"] != "teacher"].sort_values("column", kind="stable")
    seeds = table.values[table.values["metric"] == metric].pivot(
        index=["row", "column"], columns="seed", values="value"
    )
    names = list(seeds.columns)
    # Footnotes of the teacher and of other metrics are not shown: the others are counted anew.
    shown = sorted({number for notes in cells["notes"] for number in notes})
    mark = {number: place for place, number in enumerate(shown, start=1)}
    rows: list[tuple[str, ...]] = []
    for cell in lines_of(cells):
        marks = raised(mark[number] for number in cell.notes)
        values = seeds.loc[(cell.row, cell.column)] if (cell.row, cell.column) in seeds.index else {}
        texts = [_number(values.get(seed)) for seed in names]
        rows.append((cell.pair, cell.row + marks, *texts, *([_gap(cell, values, table)] if table.versus else [])))
    headings: list[tuple[str, ...]] = [("pair",), ("row",), *((f"seed {seed}",) for seed in names)]
    if table.versus:
        headings.append((f"minus {table.versus}, paired", f"(95 % interval{better})"))
    footnotes = numbered([table.footnotes[number - 1] for number in mark])
    return Grid(f"{table.data}: {title}", tuple(headings), tuple(rows), {}, tuple(footnotes), keys=2)


def _gap(cell: Any, values: Any, table: ResultTable) -> str:
    """A paired difference with its interval and number of seeds."""
    if pd.isna(cell.gap):
        return ""
    interval = "" if pd.isna(cell.gap_low) else f" [{signed(cell.gap_low)}, {signed(cell.gap_high)}]"
    return f"{signed(cell.gap)}{interval} (n={cell.gap_n})"


def signed(points: float) -> str:
    """A difference with its sign; nothing has no minus."""
    return f"{round(points, 2) + 0.0:+.2f}"  # adding 0 turns -0.0 into 0.0


def raised(numbers: Iterable[int]) -> str:
    """Footnote marks."""
    return "".join(f" {str(number).translate(RAISED)}" for number in numbers)


def numbered(footnotes: Sequence[str]) -> list[str]:
    """Footnotes with their marks."""
    return [f"{str(number).translate(RAISED)} {note}" for number, note in enumerate(footnotes, start=1)]


def _number(value: float | None) -> str:
    return "—" if value is None or pd.isna(value) else f"{value:.2f}"


def _text(cell: Any, table: ResultTable) -> str:
    if cell.published_only:
        text = "†"
    elif cell.not_applicable:
        text = "N/A"
    elif pd.isna(cell.mean):
        text = f"— (0/{cell.asked})" if cell.asked else "—"
    else:
        spread = "" if pd.isna(cell.std) else f" ± {cell.std:.2f}"
        higher = table.headings[cell.column].metric.higher_is_better
        arrow = (ARROWS if higher else WORSE_ABOVE)[cell.against]
        text = f"{cell.mean:.2f}{spread}{_seeds(cell, table)}{arrow}{TIED if cell.mark == 'tied' else ''}"
    text += raised(cell.notes)
    if cell.printed == "number":
        gap = "" if pd.isna(cell.difference) else f", {signed(cell.difference)}"
        return f"{text} [{cell.published:.2f}{gap}]"
    return f"{text} [{cell.printed}]" if cell.printed else text


def _seeds(cell: Any, table: ResultTable) -> str:
    if cell.row == "teacher":
        return ""
    if cell.n < cell.asked:
        return f" ({cell.n}/{cell.asked})"
    return f" (n={cell.n})" if cell.n < table.seeds else ""


def _compared(table: ResultTable) -> list[str]:
    if not table.compared:
        return []
    errors = [not heading.metric.higher_is_better for heading in table.headings]
    better = " (below 0 is better)" if all(errors) else " (of an error, below 0 is better)" if any(errors) else ""
    return [f"In brackets: the published number, and ours minus it{better}."]


def _lines(text: str, pair: str) -> tuple[str, ...]:
    """A heading's lines: the metric below the pair."""
    metric = text.removeprefix(f"{pair} ")
    return (text,) if metric == text else (pair, metric)
