"""Sheets as Markdown, CSV, JSON and terminal text."""

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
from kdtable.recipes.metrics import is_error
from kdtable.report.captions import of_epoch
from kdtable.report.comparison import Frame
from kdtable.report.tables import USUAL, Entry, Heading, Sheet, as_records, seed_records

FORMATS: Final = ("terminal", "markdown", "csv", "json")
ARROWS: Final = {1: " ↑", -1: " ↓", 0: ""}
#: Digits of footnotes.
RAISED: Final = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def render(sheets: Sequence[Sheet], form: str) -> str:
    """All sheets in one of :data:`FORMATS`."""
    if form == "markdown":
        return "\n\n".join(_markdown(sheet) for sheet in sheets)
    if form == "csv":
        return _csv(sheets)
    if form == "json":
        tables = [
            {"title": s.title, "captions": s.captions, "columns": s.columns, "cells": as_records(s)} for s in sheets
        ]
        return json_text(tables)
    return "\n".join(_terminal(sheet) for sheet in sheets)


def render_seeds(frames: Sequence[Frame], epoch: str = "last", metrics: Sequence[str] = USUAL) -> str:
    """Every seed of every run, and paired differences from the plain student, as Markdown: a table for each metric."""
    return "\n\n".join(_seed_table(frame, epoch, metric) for frame in frames for metric in metrics)


def _seed_table(frame: Frame, epoch: str, metric: str) -> str:
    records = seed_records(frame, metric)
    seeds = sorted({seed for _, _, values, _, _ in records for seed in values})
    footnotes = list(dict.fromkeys(note for *_, notes in records for note in notes))
    rows = []
    for pair, label, values, gap, notes in records:
        cells = [f"{values[seed]:.2f}" if seed in values else "—" for seed in seeds]
        marks = _marks(footnotes.index(note) + 1 for note in notes)
        error = "" if gap is None or gap.standard_error is None else f" ± {gap.standard_error:.2f}"
        difference = "" if gap is None else f"{_signed(gap.mean)}{error} (n={gap.n})"
        rows.append([markdown(pair), markdown(label) + marks, *cells, difference])
    better = "; below 0 is better" if is_error(metric) else ""
    headers = ["pair", "row", *(f"seed {seed}" for seed in seeds), f"minus student, paired (± SE{better})"]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    lines = "".join(f"\n- {markdown(note)}" for note in _numbered(footnotes))
    return f"**{markdown(frame.data_key)}: {of_epoch([metric], epoch)} (%)**\n\n{table}" + (
        f"\n{lines}" if lines else ""
    )


def _text(entry: Entry, sheet: Sheet, label: str) -> str:
    cell = entry.cell
    if entry.published_only:
        text = "†"
    elif cell.not_applicable:
        text = "N/A"
    elif cell.mean is None:
        text = f"— (0/{cell.asked})" if cell.asked else "—"
    else:
        spread = "" if cell.std is None else f" ± {cell.std:.2f}"
        text = f"{cell.mean:.2f}{spread}{_seeds(entry, sheet, label)}{ARROWS[entry.against_kd]}"
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
    return f"{round(points, 2) + 0.0:+.2f}"  # adding 0 makes a positive zero of a negative one


def _seeds(entry: Entry, sheet: Sheet, label: str) -> str:
    if label == "teacher":
        return ""
    if entry.cell.n < entry.cell.asked:
        return f" ({entry.cell.n}/{entry.cell.asked})"
    return f" (n={entry.cell.n})" if entry.cell.n < sheet.seeds else ""


def _captions(sheet: Sheet) -> list[str]:
    return [*sheet.captions, *_compared(sheet), *_numbered(sheet.footnotes)]


def _compared(sheet: Sheet) -> list[str]:
    if not sheet.compared:
        return []
    errors = [is_error(heading.metric) for heading in sheet.headings]
    better = " (below 0 is better)" if all(errors) else " (of an error, below 0 is better)" if any(errors) else ""
    return [f"In brackets: the published number, and ours minus it{better}."]


def _marks(numbers: Iterable[int]) -> str:
    return "".join(f" {str(number).translate(RAISED)}" for number in numbers)


def _numbered(footnotes: Sequence[str]) -> list[str]:
    return [f"{str(number).translate(RAISED)} {note}" for number, note in enumerate(footnotes, start=1)]


def _markdown(sheet: Sheet) -> str:
    rows = []
    for label, entries in sheet.rows:
        cells = [_text(entry, sheet, label) for entry in entries]
        rows.append([markdown(label), *(f"**{c}**" if e.best else c for c, e in zip(cells, entries, strict=True))])
    table = tabulate(rows, ["", *map(markdown, sheet.columns)], tablefmt="github", disable_numparse=True)
    captions = "\n".join(f"- {markdown(line)}" for line in _captions(sheet))
    return f"**{markdown(sheet.title)}**\n\n{table}\n\n{captions}"


def _terminal(sheet: Sheet) -> str:
    table = RichTable("")
    for heading in sheet.headings:
        table.add_column(Text("\n".join(_lines(heading))), justify="right")
    for label, entries in sheet.rows:
        texts = [f"{_text(e, sheet, label)}{' *' if e.best else ''}" for e in entries]
        cells = [Text(text, style="bold" if e.best else "") for text, e in zip(texts, entries, strict=True)]
        table.add_row(Text(printable(label)), *cells, end_section=label == "student")
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=sys.stdout.isatty(), width=_width(sheet))
    # Not as the table's own title, which is broken to the width of a narrow table.
    console.print(Text(printable(sheet.title), style="table.title"))
    console.print(table)
    for line in _captions(sheet):
        console.print(Text(printable(line)))
    return buffer.getvalue()


def _lines(heading: Heading) -> list[str]:
    """A heading as a terminal shows it: the metric below the pair."""
    text, pair = printable(heading.text), printable(heading.pair)
    metric = text.removeprefix(f"{pair} ")
    return [text] if metric == text else [pair, metric]


def _width(sheet: Sheet) -> int:
    """Wide enough that no number is cut: a table is meant to be copied."""
    widths = [
        max(*map(len, _lines(heading)), *(len(_text(row[1][i], sheet, row[0])) for row in sheet.rows)) + 5
        for i, heading in enumerate(sheet.headings)
    ]
    return max(100, 2 + max(len(printable(label)) for label, _ in sheet.rows) + 3 + sum(widths))


def _csv(sheets: Sequence[Sheet]) -> str:
    buffer = io.StringIO()
    records = [record | {"recipe": " ".join(sheet.departures)} for sheet in sheets for record in as_records(sheet)]
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
