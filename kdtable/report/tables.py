"""Result tables: pivots of a comparison's runs, in its own layout or that of a paper's table."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kdtable.papers import Pair, Paper, Table
from kdtable.recipes.metrics import CLASSIFICATION, METRICS, VALIDATED, Metric, usual
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
    """A table of a whole comparison: methods down, pairs and metrics (by default the task's usual ones) across.

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
        tuple(metrics or _usual(comparison)),
    )
    paper, changed = nearest(comparison.recipe, _rates(comparison.columns), comparison.data["kind"], comparison.papers)
    differs = words.differs(f"that of {paper.name}", changed)
    captions = [words.recipe(comparison), *differs, *words.notes(comparison)]
    table = _table(comparison.data_key, layout, comparison, comparison.rule, _unpublished, versus)
    return replace(table, captions=(*table.captions, *captions), changes_of=tuple(differs))


def _usual(comparison: Comparison) -> list[Metric]:
    """The metrics that a task's tables show, without those beside the main one that nothing here has a value of."""
    main, *beside = usual(comparison.metrics)
    return [main, *(metric for metric in beside if comparison.runs[metric.stored].notna().any())]


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
        comparison.rule if comparison and comparison.rule == VALIDATED else rule or table.epoch,
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
    measured = replace(comparison, rule=rule) if comparison else Comparison({}, "", "", {}, CLASSIFICATION, rule)
    values = _values(measured, layout, headings)
    seeds = ranking.by_seed(values)
    cells = _cells(measured, layout, headings, seeds, printed)
    seeds = seeds.loc[:, seeds.columns.get_level_values("row") != "teacher"]
    base = ranking.baseline(versus, layout.labels)
    cells = ranking.ranked(cells, seeds, headings, base)
    footnotes = tuple(dict.fromkeys(note for notes in cells["notes"] for note in notes))
    number = {note: index for index, note in enumerate(footnotes, start=1)}
    cells["notes"] = [tuple(sorted(number[note] for note in notes)) for notes in cells["notes"]]
    count = max(cells.loc[cells["row"] != "teacher", "n"].tolist(), default=0)
    main, metrics = measured.metrics[0], layout.metrics
    held_out = f", {held:,} images held out" if (held := measured.data.get(VALIDATED)) else ""
    whole = words.with_unit(f"{title}{held_out}{in_title}: {words.in_words(metrics)}", metrics)
    captions = [
        words.legend(cells, metrics, rule, main, count, base),
        *words.resolution(ranking.resolved(seeds, headings)),
    ]
    return ResultTable(
        whole, measured.data_key, headings, layout.labels, cells[list(CELLS)],
        values[values["row"] != "teacher"].reset_index(drop=True), tuple(captions), footnotes,
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


def _values(comparison: Comparison, layout: _Layout, headings: Sequence[Heading]) -> pd.DataFrame:
    """A line per finished run and heading, and per measured file of a teacher (row "teacher")."""
    place = {column: number for number, column in enumerate(layout.columns) if column is not None}
    own = comparison.cells.assign(place=comparison.cells["column"].map(place)).dropna(subset="place")
    lines = own[["label", "place", "group", "paper"]].merge(comparison.runs, on="group")
    first = lines["place"].astype(int) * len(layout.metrics)
    parts = [
        lines.assign(column=first + index, value=metric.shown(lines[metric.stored]))  # type: ignore[arg-type]
        for index, metric in enumerate(layout.metrics)
        if metric.stored in lines
    ]
    whole = pd.concat(parts) if parts else lines.assign(column=first, value=0.0).iloc[:0]
    whole = whole.dropna(subset="value").astype({"epoch": int})
    said = pd.DataFrame(
        [(heading.pair, heading.teacher, heading.student, heading.metric.name) for heading in headings],
        columns=["pair", "teacher", "student", "metric"],
        dtype=object,
    ).take(whole["column"].to_numpy())
    whole = whole.reset_index(drop=True).join(said.reset_index(drop=True))
    return whole.assign(row=_rows(whole["label"]), data=comparison.data_key, rule=comparison.rule)[list(VALUES)]


def _rows(labels: "pd.Series[str]") -> "pd.Series[str]":
    return labels.where(labels != STUDENT, "student")


def _cells(
    comparison: Comparison, layout: _Layout, headings: Sequence[Heading], seeds: pd.DataFrame, printed: Printed
) -> pd.DataFrame:
    """A line per row and heading, without ranks; ``notes`` are texts."""
    grid = pd.MultiIndex.from_product([layout.labels, range(len(headings))], names=["row", "column"])
    place = grid.get_level_values("column") // len(layout.metrics)
    stats = pd.DataFrame({"mean": seeds.mean(), "std": seeds.std(), "n": seeds.count()}).reindex(grid).reset_index()
    of = np.array([-1 if column is None else column for column in layout.columns], dtype=int)
    asked = comparison.cells.assign(row=_rows(comparison.cells["label"]), of=comparison.cells["column"].astype(int))
    asked = asked[["row", "of", "asked", "failed", "not_applicable", "notes"]]
    found = stats.assign(of=of[place]).merge(asked, how="left", on=["row", "of"])
    found = found.fillna({"n": 0, "asked": 0, "failed": 0}).astype({"n": int, "asked": int, "failed": int})
    said = [printed(row, i, headings[j].metric) for row, i, j in zip(found["row"], place, found["column"], strict=True)]
    own = list(dict.fromkeys(map(tuple, comparison.own.values())))
    group = {row: own.index(tuple(fields)) + 1 for row, fields in comparison.own.items()}
    found = found.assign(
        pair=[headings[column].pair for column in found["column"]],
        metric=[headings[column].metric.name for column in found["column"]],
        not_applicable=found["not_applicable"].astype(object).where(found["not_applicable"].notna(), None),
        notes=found["notes"].map(lambda notes: notes if isinstance(notes, list) else []),
        published=[value for value, _ in said],
        printed=[text for _, text in said],
        group=[group.get(row.partition(" ")[0], 0) for row in found["row"]],
    )
    found["difference"] = found["mean"] - found["published"]
    return _stated(found, layout.published_only)


def _stated(cells: pd.DataFrame, published_only: Sequence[str]) -> pd.DataFrame:
    """Add whether there is a number of ours, or why not, in words."""
    measured, refused = cells["mean"].notna(), cells["not_applicable"].notna()
    # A published-only row may still have been trained here, by another recipe than the table's.
    only = cells["row"].isin(published_only) & (cells["asked"] == 0) & ~refused
    states = {
        "published only": only,
        "not applicable": refused,
        "done": measured & (cells["n"] >= cells["asked"]),
        "partly done": measured,
        "not done": cells["asked"] > 0,
    }
    return cells.assign(published_only=only, state=np.select(list(states.values()), list(states), "none"))
