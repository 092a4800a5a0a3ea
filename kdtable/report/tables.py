"""Result tables: pivots of a comparison's runs, in its own layout or that of a paper's table."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kdtable.papers import Pair, Paper, Table
from kdtable.recipes.metrics import CLASSIFICATION, METRICS, Metric
from kdtable.report import captions as words
from kdtable.report import ranking
from kdtable.report.aggregate import STUDENT
from kdtable.report.comparison import Column, Comparison, column_names
from kdtable.report.recipe_changes import changes_of, nearest
from kdtable.report.result_table import BASELINES, CELLS, VALUES, Heading, ResultTable

__all__ = ["BASELINES", "Heading", "ResultTable", "comparison_table", "fits_paper", "paper_table"]

#: A published number and what the paper says of it ("number", "N/A", "not available", ""), by row, pair and metric.
Printed = Callable[[str, int, Metric], tuple[float, str]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Rows and columns of a table: labels in order, and for each pair its names and index in the comparison."""

    labels: tuple[str, ...]
    pairs: tuple[tuple[str, str | None, str], ...]
    columns: tuple[int | None, ...]
    metrics: tuple[Metric, ...]
    published_only: tuple[str, ...] = ()


def comparison_table(comparison: Comparison, metrics: Sequence[Metric] = (), versus: str = "kd") -> ResultTable:
    """A table of a whole comparison: methods down, pairs and metrics (by default the main one) across.

    Args:
        comparison: the runs.
        metrics: to show; they were read from the store.
        versus: row that others are compared with.
    """
    names = column_names(comparison.columns)
    layout = _Layout(
        (*BASELINES, *(label for label in comparison.labels if label != STUDENT))
        if STUDENT in comparison.labels
        else ("teacher", *comparison.labels),
        tuple((names[column], column.teacher, column.student) for column in comparison.columns),
        tuple(range(len(comparison.columns))),
        tuple(metrics or comparison.metrics[:1]),
    )
    paper, changed = nearest(comparison.recipe, _rates(comparison.columns), comparison.data["kind"], comparison.papers)
    differs = words.differs(f"that of {paper.name}", changed)
    captions = [words.recipe(comparison), *differs, *words.notes(comparison)]
    table = _table(comparison.data_key, layout, comparison, comparison.rule, _unpublished, versus)
    return replace(table, captions=(*table.captions, *captions), changes_of=tuple(differs))


def paper_table(
    paper: Paper,
    table: Table,
    comparison: Comparison | None,
    rule: str = "",
    *,
    compare: bool,
    metrics: Sequence[Metric] = (),
    versus: str = "kd",
) -> ResultTable:
    """A table in a published table's layout, filled from a comparison (``None`` if nothing was run).

    Rows that the paper lacks, such as combinations with KD, follow at the end. ``metrics`` replace the table's own,
    ``rule`` its epoch.
    """
    metrics, paper, rule = (
        tuple(metrics) or tuple(METRICS[name] for name in table.metrics),
        paper.on(table.data),
        rule or table.epoch,
    )
    labels = comparison.labels if comparison else []
    columns = [_match(comparison, pair, paper) for pair in table.pairs]
    layout = _Layout(
        (*BASELINES, *table.rows, *(label for label in labels if label not in (*table.rows, STUDENT))),
        tuple((str(pair), pair.teacher, pair.student) for pair in table.pairs),
        tuple(columns),
        metrics,
        table.published_only,
    )
    found = _table(table.title, layout, comparison, rule, _printed(table) if compare else _unpublished, versus)
    captions = words.of_published(table, metrics, rule) if compare else []
    differs: list[str] = []
    if comparison is not None:
        shown = [comparison.columns[column] for column in columns if column is not None]
        differs = words.differs("the paper's", changes_of(comparison.recipe, _rates(shown), paper))
        captions += [words.recipe(comparison), *differs]
        captions += [*words.left_out(comparison, table, shown), *words.notes(comparison)]
    return replace(found, captions=(*found.captions, *captions), compared=compare, changes_of=tuple(differs))


def fits_paper(comparison: Comparison, paper: Paper, table: Table) -> bool:
    """Whether a comparison has a column for one of the table's pairs on its data set."""
    fits = any(_match(comparison, pair, paper) is not None for pair in table.pairs)
    return comparison.data["kind"] == table.data and fits


def _match(comparison: Comparison | None, pair: Pair, paper: Paper) -> int | None:
    """Index of the comparison's column for a pair: at the paper's learning rate if there is one, else the first."""
    own = paper.recipe_for(pair.student).lr
    columns = list(enumerate(comparison.columns if comparison else ()))
    same = [(i, c) for i, c in columns if (c.teacher, c.student) == (pair.teacher, pair.student)]
    return next((i for i, c in same if c.lr == own), same[0][0] if same else None)


def _rates(columns: Iterable[Column]) -> list[tuple[str, float]]:
    return [(column.student, column.lr) for column in columns]


def _unpublished(row: str, number: int, metric: Metric) -> tuple[float, str]:
    return np.nan, ""


def _printed(table: Table) -> Printed:
    def printed(row: str, number: int, metric: Metric) -> tuple[float, str]:
        value = table.printed(row, number, metric)
        if value is not None:
            return value, "N/A" if np.isnan(value) else "number"
        unread = row in table.published and table.printed_as(metric) is not None
        return np.nan, "not available" if unread else ""

    return printed


def _table(
    title: str, layout: _Layout, comparison: Comparison | None, rule: str, printed: Printed, versus: str
) -> ResultTable:
    """A table with cells, marks, footnotes, headings and legend."""
    headings, in_title = _headings(layout)
    measured = comparison or Comparison({}, "", "", {}, CLASSIFICATION, rule)
    values = _values(measured, layout, headings, rule)
    seeds = ranking.by_seed(values)
    cells = _cells(measured, layout, headings, pd.concat([seeds, _teachers(measured, layout)], axis="columns"), printed)
    base = ranking.baseline(versus, layout.labels)
    cells = ranking.ranked(cells, seeds, headings, base)
    footnotes = tuple(dict.fromkeys(note for notes in cells["notes"] for note in notes))
    number = {note: index for index, note in enumerate(footnotes, start=1)}
    cells["notes"] = [tuple(number[note] for note in notes) for notes in cells["notes"]]
    count = int(cells.loc[cells["row"] != "teacher", "n"].max())
    main, metrics = measured.metrics[0], layout.metrics
    whole = words.with_unit(f"{title}{in_title}: {words.in_words(metrics)}", metrics)
    captions = [
        words.legend(cells, metrics, rule, main, count, base),
        *words.resolution(ranking.resolved(seeds, headings)),
    ]
    return ResultTable(
        whole, measured.data_key, headings, layout.labels, cells[list(CELLS)], values, tuple(captions), footnotes,
        versus=base, seeds=count, metrics=metrics, main=main, rule=rule,
    )  # fmt: skip


def _headings(layout: _Layout) -> tuple[tuple[Heading, ...], str]:
    """A short heading for each metric of each pair, and what the title says instead."""
    pairs, metrics = layout.pairs, layout.metrics
    if len(metrics) == 1:
        return tuple(Heading(name, name, metrics[0], *pair) for name, *pair in pairs), ""  # type: ignore[arg-type]
    one = len(pairs) == 1
    found = [
        Heading(m.words if one else f"{name} {m.words}", name, m, teacher, student)
        for name, teacher, student in pairs
        for m in metrics
    ]
    return tuple(found), f", {pairs[0][0]}" if one else ""


def _values(comparison: Comparison, layout: _Layout, headings: Sequence[Heading], rule: str) -> pd.DataFrame:
    """A line per finished run and heading."""
    if comparison.cells.empty or not headings:
        return pd.DataFrame({name: pd.Series(dtype=float if name == "value" else object) for name in VALUES})
    place = {column: number for number, column in enumerate(layout.columns) if column is not None}
    own = comparison.cells.assign(place=comparison.cells["column"].map(place)).dropna(subset="place")
    lines = own[["label", "place", "group", "paper"]].merge(comparison.runs, on="group")
    lines["row"] = lines["label"].where(lines["label"] != STUDENT, "student")
    return _melted(lines, layout.metrics, headings).assign(data=comparison.data_key, rule=rule)[list(VALUES)]


def _melted(lines: pd.DataFrame, metrics: Sequence[Metric], headings: Sequence[Heading]) -> pd.DataFrame:
    """A line per line and metric that was measured, with what the heading says."""
    numbers = lines["place"].astype(int) * len(metrics)
    parts = [
        lines.assign(column=numbers + index, value=metric.shown(lines[metric.stored]))  # type: ignore[arg-type]
        for index, metric in enumerate(metrics)
        if metric.stored in lines
    ]
    whole = pd.concat(parts) if parts else lines.assign(column=numbers, value=np.nan)
    whole = whole.dropna(subset="value").astype({"epoch": int}).reset_index(drop=True)
    about = {"pair": "pair", "teacher": "teacher", "student": "student"}
    for name in about:
        whole[name] = whole["column"].map({i: getattr(heading, name) for i, heading in enumerate(headings)})
    whole["metric"] = whole["column"].map({i: heading.metric.name for i, heading in enumerate(headings)})
    return whole


def _teachers(comparison: Comparison, layout: _Layout) -> pd.DataFrame:
    """What the files of each column's teacher reached, as :func:`ranking.by_seed` has it."""
    files = {
        ("teacher", place * len(layout.metrics) + index): pd.Series(
            [
                metric.shown(record.metrics[metric.stored])
                for record in comparison.teachers[column]
                if metric.stored in record.metrics
            ]
        )
        for place, column in enumerate(layout.columns)
        if column in comparison.teachers
        for index, metric in enumerate(layout.metrics)
    }
    found = pd.DataFrame(files, dtype=float)
    return (
        found.set_axis(pd.MultiIndex.from_tuples(list(files), names=["row", "column"]), axis="columns")
        if files
        else found
    )


def _cells(
    comparison: Comparison, layout: _Layout, headings: Sequence[Heading], seeds: pd.DataFrame, printed: Printed
) -> pd.DataFrame:
    """A line per row and heading, without ranks; ``notes`` are texts."""
    count = len(layout.metrics)
    grid = pd.MultiIndex.from_product([layout.labels, range(len(headings))], names=["row", "column"])
    stats = {"mean": seeds.mean(), "std": seeds.std(), "count": seeds.count()}
    found = pd.DataFrame(stats).reindex(grid).reset_index()
    found["pair"] = [headings[column].pair for column in found["column"]]
    found["metric"] = [headings[column].metric.name for column in found["column"]]
    found["n"] = found.pop("count").fillna(0).astype(int)
    about = {
        ("student" if cell.label == STUDENT else cell.label, cell.column): cell
        for cell in comparison.cells.itertuples(index=False)
    }
    of = [
        about.get((row, layout.columns[column // count]))
        for row, column in zip(found["row"], found["column"], strict=True)
    ]
    found["asked"] = [cell.asked if cell else 0 for cell in of]
    found["failed"] = [cell.failed if cell else 0 for cell in of]
    found["not_applicable"] = pd.Series([cell.not_applicable if cell else None for cell in of], dtype=object)
    found["notes"] = [
        comparison.teacher_notes.get(layout.columns[column // count], [])
        if row == "teacher"
        else cell.notes
        if cell
        else []
        for row, column, cell in zip(found["row"], found["column"], of, strict=True)
    ]
    of_teacher = found["row"] == "teacher"
    found.loc[of_teacher, "asked"] = found.loc[of_teacher, "n"]
    published = [printed(r, c // count, headings[c].metric) for r, c in zip(found["row"], found["column"], strict=True)]
    found["published"] = [value for value, _ in published]
    found["printed"] = [said for _, said in published]
    found["difference"] = found["mean"] - found["published"]
    # A published-only row may still have been trained here, by another recipe than the table's.
    found["published_only"] = (
        found["row"].isin(layout.published_only) & (found["asked"] == 0) & found["not_applicable"].isna()
    )
    own = list(dict.fromkeys(map(tuple, comparison.own.values())))
    groups = {row: own.index(tuple(fields)) + 1 for row, fields in comparison.own.items()}
    found["group"] = [groups.get(row.split(" ")[0], 0) for row in found["row"]]
    found["state"] = np.select(
        [
            found["published_only"],
            found["not_applicable"].notna(),
            found["mean"].notna() & (found["n"] >= found["asked"]),
            found["mean"].notna(),
            found["asked"] > 0,
        ],
        ["published only", "not applicable", "done", "partly done", "not done"],
        "none",
    )
    return found
