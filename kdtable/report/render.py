"""Render tables as Markdown, CSV, JSON and terminal text."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any, Final

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import tabulate

from kdtable.escaping import (
    csv_cell,
    json_text,
    markdown,
    printable,
)
from kdtable.recipes.metrics import Metric
from kdtable.report.captions import of_epoch, with_unit
from kdtable.report.comparison import Comparison
from kdtable.report.tables import Entry, Heading, ResultTable, as_records, seed_records

FORMATS: Final = ("terminal", "markdown", "csv", "json")
ARROWS: Final = {1: " ↑", -1: " ↓", 0: ""}
#: Superscript digits of footnotes.
RAISED: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def render(result_tables: Sequence[ResultTable], form: str) -> str:
    """Render tables in one of :data:`FORMATS`."""
    if form == "markdown":
        return "\n\n".join(_markdown(result_table) for result_table in result_tables)
    if form == "csv":
        return _csv(result_tables)
    if form == "json":
        tables = [
            {"title": s.title, "captions": s.captions, "columns": s.columns, "cells": as_records(s)}
            for s in result_tables
        ]
        return json_text(tables)
    return "\n".join(_terminal(result_table) for result_table in result_tables)


def render_seeds(comparisons: Sequence[Comparison], epoch: str = "last", metrics: Sequence[Metric] = ()) -> str:
    """Render every seed, and paired differences from the plain student, as a Markdown table for each metric."""
    return "\n\n".join(
        _seed_table(comparison, epoch, metric)
        for comparison in comparisons
        for metric in metrics or comparison.metrics[:1]
    )


def _seed_table(comparison: Comparison, epoch: str, metric: Metric) -> str:
    records = seed_records(comparison, metric)
    seeds = sorted({seed for _, _, values, _, _ in records for seed in values})
    footnotes = list(dict.fromkeys(note for *_, notes in records for note in notes))
    rows = []
    for pair, label, values, gap, notes in records:
        cells = [f"{values[seed]:.2f}" if seed in values else "—" for seed in seeds]
        marks = _marks(footnotes.index(note) + 1 for note in notes)
        error = "" if gap is None or gap.standard_error is None else f" ± {gap.standard_error:.2f}"
        difference = "" if gap is None else f"{_signed(gap.mean)}{error} (n={gap.n})"
        rows.append([markdown(pair), markdown(label) + marks, *cells, difference])
    better = "" if metric.higher_is_better else "; below 0 is better"
    headers = ["pair", "row", *(f"seed {seed}" for seed in seeds), f"minus student, paired (± SE{better})"]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    lines = "".join(f"\n- {markdown(note)}" for note in _numbered(footnotes))
    title = with_unit(of_epoch([metric], epoch, comparison.metrics[0]), [metric])
    return f"**{markdown(comparison.data_key)}: {title}**\n\n{table}" + (f"\n{lines}" if lines else "")


def _text(entry: Entry, result_table: ResultTable, label: str) -> str:
    cell = entry.cell
    if entry.published_only:
        text = "†"
    elif cell.not_applicable:
        text = "N/A"
    elif cell.mean is None:
        text = f"— (0/{cell.asked})" if cell.asked else "—"
    else:
        spread = "" if cell.std is None else f" ± {cell.std:.2f}"
        text = f"{cell.mean:.2f}{spread}{_seeds(entry, result_table, label)}{ARROWS[entry.against_kd]}"
    text += _marks(entry.notes)
    if entry.unread:
        return f"{text} [not available]"
    if entry.published is None:
        return text
    if isnan(entry.published):
        return f"{text} [N/A]"
    gap = "" if entry.difference is None else f", {_signed(entry.difference)}"
    return f"{text} [{entry.published:.2f}{gap}]"


def _signed(points: float) -> str:
    return f"{round(points, 2) + 0.0:+.2f}"  # adding 0 turns -0.0 into 0.0


def _seeds(entry: Entry, result_table: ResultTable, label: str) -> str:
    if label == "teacher":
        return ""
    if entry.cell.n < entry.cell.asked:
        return f" ({entry.cell.n}/{entry.cell.asked})"
    return f" (n={entry.cell.n})" if entry.cell.n < result_table.seeds else ""


def _captions(result_table: ResultTable) -> list[str]:
    return [*result_table.captions, *_compared(result_table), *_numbered(result_table.footnotes)]


def _compared(result_table: ResultTable) -> list[str]:
    if not result_table.compared:
        return []
    errors = [not heading.metric.higher_is_better for heading in result_table.headings]
    better = " (below 0 is better)" if all(errors) else " (of an error, below 0 is better)" if any(errors) else ""
    return [f"In brackets: the published number, and ours minus it{better}."]


def _marks(numbers: Iterable[int]) -> str:
    return "".join(f" {str(number).translate(RAISED)}" for number in numbers)


def _numbered(footnotes: Sequence[str]) -> list[str]:
    return [f"{str(number).translate(RAISED)} {note}" for number, note in enumerate(footnotes, start=1)]


def _markdown(result_table: ResultTable) -> str:
    rows = []
    for label, entries in result_table.rows:
        cells = [_text(entry, result_table, label) for entry in entries]
        rows.append([markdown(label), *(f"**{c}**" if e.best else c for c, e in zip(cells, entries, strict=True))])
    table = tabulate(rows, ["", *map(markdown, result_table.columns)], tablefmt="github", disable_numparse=True)
    captions = "\n".join(f"- {markdown(line)}" for line in _captions(result_table))
    return f"**{markdown(result_table.title)}**\n\n{table}\n\n{captions}"


def _terminal(result_table: ResultTable) -> str:
    table = RichTable("")
    for heading in result_table.headings:
        table.add_column(Text("\n".join(_lines(heading))), justify="right")
    for label, entries in result_table.rows:
        texts = [f"{_text(e, result_table, label)}{' *' if e.best else ''}" for e in entries]
        cells = [Text(text, style="bold" if e.best else "") for text, e in zip(texts, entries, strict=True)]
        table.add_row(Text(printable(label)), *cells, end_section=label == "student")
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=sys.stdout.isatty(), width=_width(result_table))
    # Not as rich's table title, which wraps to the width of the table.
    console.print(Text(printable(result_table.title), style="table.title"))
    console.print(table)
    for line in _captions(result_table):
        console.print(Text(printable(line)))
    return buffer.getvalue()


def _lines(heading: Heading) -> list[str]:
    """A heading's lines on a terminal: the metric below the pair."""
    text, pair = printable(heading.text), printable(heading.pair)
    metric = text.removeprefix(f"{pair} ")
    return [text] if metric == text else [pair, metric]


def _width(result_table: ResultTable) -> int:
    """A width at which no number is cut, so that tables can be copied."""
    widths = [
        max(*map(len, _lines(heading)), *(len(_text(row[1][i], result_table, row[0])) for row in result_table.rows)) + 5
        for i, heading in enumerate(result_table.headings)
    ]
    return max(100, 2 + max(len(printable(label)) for label, _ in result_table.rows) + 3 + sum(widths))


def _csv(result_tables: Sequence[ResultTable]) -> str:
    buffer = io.StringIO()
    records = [
        record | {"recipe": " ".join(result_table.changes_of)}
        for result_table in result_tables
        for record in as_records(result_table)
    ]
    writer = csv.DictWriter(buffer, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        seeds = " ".join(f"{seed}:{value:.4f}" for seed, value in record["seeds"].items())
        writer.writerow(
            {
                key: _csv_value(value)
                for key, value in (record | {"seeds": seeds, "notes": " ".join(record["notes"])}).items()
            }
        )
    return buffer.getvalue().rstrip("\n")


def _csv_value(value: Any) -> Any:
    if value is None:
        return ""
    return csv_cell(value) if isinstance(value, str) else value
