"""Result tables: from comparisons, and in the layout of a paper's table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any

from kdtable.papers import Pair, Paper, Table
from kdtable.recipes.metrics import CLASSIFICATION, METRICS, Metric
from kdtable.report import captions as words
from kdtable.report.aggregate import STUDENT
from kdtable.report.cells import CellValues, PairedDifference, paired_difference
from kdtable.report.comparison import Column, Comparison, column_names
from kdtable.report.recipe_changes import changes_of, nearest

BASELINES = ("teacher", "student")
PUBLISHED_ONLY = "published only"


@dataclass(frozen=True, slots=True)
class Entry:
    """A table cell: our values, and the published number.

    Attributes:
        cell: our values.
        published: the paper's number; NaN if it says N/A; ``None`` if it has none, is not compared, or is ``unread``.
        unread: the paper's number could not be read.
        best: best method of its column.
        against_kd: 1 better than KD, -1 worse, 0 equal or not comparable.
        notes: numbers of the table's footnotes.
        published_only: the row is not trained here.
    """

    cell: CellValues
    published: float | None = None
    unread: bool = False
    best: bool = False
    against_kd: int = 0
    notes: tuple[int, ...] = ()
    published_only: bool = False

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        if self.cell.mean is None or self.published is None or isnan(self.published):
            return None
        return self.cell.mean - self.published

    @property
    def state(self) -> str:
        """Whether there is a number of ours, or why not, in words."""
        if self.published_only:
            return PUBLISHED_ONLY
        if self.cell.not_applicable:
            return "not applicable"
        if self.cell.mean is not None:
            return "done" if self.cell.n >= self.cell.asked else "partly done"
        return "not done" if self.cell.asked else "none"


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's text, pair and metric. The text leaves out what is the same in all columns."""

    text: str
    pair: str
    metric: Metric


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A table: labelled rows of table cells under headings, with captions and footnotes (numbered from 1).

    ``changes_of`` are the captions on changes from the paper's recipe.
    """

    title: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    captions: tuple[str, ...]
    compared: bool = False
    seeds: int = field(default=0)
    footnotes: tuple[str, ...] = ()
    changes_of: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts of the headings."""
        return tuple(heading.text for heading in self.headings)


def comparison_table(comparison: Comparison, epoch: str, metrics: Sequence[Metric] = ()) -> ResultTable:
    """A table of a whole comparison: methods down, pairs and metrics (by default the main one) across."""
    metrics = metrics or comparison.metrics[:1]
    names = column_names(comparison.columns)
    order = sorted(comparison.labels, key=lambda label: label != STUDENT)
    rows = [("teacher", tuple(Entry(_teacher_cell(comparison, c).of(m)) for c in comparison.columns for m in metrics))]
    rows += [
        (
            "student" if label == STUDENT else label,
            tuple(Entry(comparison.cell(label, c).of(m)) for c in comparison.columns for m in metrics),
        )
        for label in order
    ]
    paper, changed = nearest(comparison.recipe, _rates(comparison.columns), comparison.data["kind"], comparison.papers)
    differs = words.differs(f"that of {paper.name}", changed)
    captions = [words.recipe(comparison), *differs, *words.notes(comparison)]
    shown = (epoch, metrics, comparison.metrics[0])
    result_table = _finished(comparison.data_key, [names[c] for c in comparison.columns], rows, captions, shown)
    return replace(result_table, changes_of=tuple(differs))


def paper_table(
    paper: Paper,
    table: Table,
    comparison: Comparison | None,
    epoch: str,
    *,
    compare: bool,
    metrics: Sequence[Metric] = (),
) -> ResultTable:
    """A table in a published table's layout, filled from a comparison (``None`` if nothing was run).

    Rows that the paper lacks, such as combinations with KD, follow at the end. ``metrics`` replace the table's own.
    """
    metrics, paper = metrics or [METRICS[name] for name in table.metrics], paper.on(table.data)
    extra = [label for label in (comparison.labels if comparison else ()) if label not in (*table.rows, STUDENT)]
    columns = [_match(comparison, pair, paper) for pair in table.pairs]
    rows = []
    for label in (*BASELINES, *table.rows, *extra):
        cells = [_cell(comparison, label, column) for column in columns]
        shown = [
            _paper_cell(table, label, (i, m), cell, compare=compare) for i, cell in enumerate(cells) for m in metrics
        ]
        rows.append((label, tuple(shown)))
    captions = words.of_published(table, metrics, epoch) if compare else []
    differs: list[str] = []
    if comparison is not None:
        changed = changes_of(comparison.recipe, _rates(c for c in columns if c is not None), paper)
        differs = words.differs("the paper's", changed)
        captions += [words.recipe(comparison), *differs]
        captions += [*words.left_out(comparison, table, columns), *words.notes(comparison)]
    main = comparison.metrics[0] if comparison else CLASSIFICATION[0]
    result_table = _finished(table.title, [str(p) for p in table.pairs], rows, captions, (epoch, metrics, main))
    return replace(result_table, compared=compare, changes_of=tuple(differs))


def fits_paper(comparison: Comparison, paper: Paper, table: Table) -> bool:
    """Whether a comparison has a column for one of the table's pairs on its data set."""
    return comparison.data["kind"] == table.data and any(_match(comparison, pair, paper) for pair in table.pairs)


def _match(comparison: Comparison | None, pair: Pair, paper: Paper) -> Column | None:
    """The comparison's column for a pair: at the paper's learning rate if there is one, else the first."""
    own = paper.recipe_for(pair.student).lr
    columns = [
        c for c in (comparison.columns if comparison else ()) if (c.teacher, c.student) == (pair.teacher, pair.student)
    ]
    return next((c for c in columns if c.lr == own), columns[0] if columns else None)


def _cell(comparison: Comparison | None, label: str, column: Column | None) -> CellValues:
    if comparison is None or column is None:
        return CellValues()
    if label == "teacher":
        return _teacher_cell(comparison, column)
    return comparison.cell(STUDENT if label == "student" else label, column)


def _paper_cell(table: Table, label: str, placement: tuple[int, Metric], cell: CellValues, *, compare: bool) -> Entry:
    """The table cell of a paper's row in the column and metric of ``placement``."""
    number, metric = placement
    published = table.printed(label, number, metric) if compare else None
    unread = compare and published is None and label in table.published and table.printed_as(metric) is not None
    # A published-only row may still have been trained here, by another recipe than the table's.
    only = label in table.published_only and not cell.asked and not cell.not_applicable
    return Entry(cell.of(metric), published, unread, published_only=only)


def _teacher_cell(comparison: Comparison, column: Column) -> CellValues:
    return comparison.teachers.get(column, CellValues())


def _finished(
    title: str,
    pairs: Sequence[str],
    rows: Sequence[tuple[str, tuple[Entry, ...]]],
    captions: Iterable[str],
    shown: tuple[str, Sequence[Metric], Metric],
) -> ResultTable:
    """Add marks, footnotes, headings and legend. ``shown``: the epoch, the metrics and the main metric."""
    epoch, metrics, main = shown
    headings, in_title = _headings(pairs, metrics)
    seeds = max((entry.cell.n for label, entries in rows if label != "teacher" for entry in entries), default=0)
    footnotes = tuple(dict.fromkeys(note for _, entries in rows for entry in entries for note in entry.cell.notes))
    numbers = {note: number for number, note in enumerate(footnotes, start=1)}
    finished = [
        (label, tuple(_numbered(entry, numbers) for entry in entries)) for label, entries in _marked(rows, headings)
    ]
    only = any(entry.published_only for _, entries in rows for entry in entries)
    legend = words.legend(metrics, epoch, main, seeds, published_only=only)
    whole = words.with_unit(f"{title}{in_title}: {words.in_words(metrics)}", metrics)
    return ResultTable(whole, headings, tuple(finished), (legend, *captions), seeds=seeds, footnotes=footnotes)


def _headings(pairs: Sequence[str], metrics: Sequence[Metric]) -> tuple[tuple[Heading, ...], str]:
    """A short heading for each metric of each pair, and what the title says instead."""
    if len(metrics) == 1:
        return tuple(Heading(pair, pair, metrics[0]) for pair in pairs), ""
    one = len(pairs) == 1
    found = [Heading(m.words if one else f"{pair} {m.words}", pair, m) for pair in pairs for m in metrics]
    return tuple(found), f", {pairs[0]}" if one else ""


def _numbered(entry: Entry, numbers: Mapping[str, int]) -> Entry:
    return replace(entry, notes=tuple(numbers[note] for note in entry.cell.notes))


def _marked(
    rows: Sequence[tuple[str, tuple[Entry, ...]]], headings: Sequence[Heading]
) -> Iterable[tuple[str, tuple[Entry, ...]]]:
    methods = {label: entries for label, entries in rows if label not in BASELINES}
    # Negate metrics for which lower is better.
    signs = [1 if heading.metric.higher_is_better else -1 for heading in headings]
    scores = {label: list(map(_score, signs, entries)) for label, entries in methods.items()}
    best = [_best(column) for column in zip(*scores.values(), strict=True)]
    unknown: list[float | None] = [None] * len(headings)
    for label, entries in rows:
        if label in methods:
            kd = unknown if label == "kd" else scores.get("kd", unknown)
            yield label, tuple(map(_mark, entries, scores[label], kd, best))
        else:
            yield label, entries


def _score(sign: int, entry: Entry) -> float | None:
    mean = entry.cell.mean
    return None if mean is None else sign * mean


def _best(scores: Sequence[float | None]) -> float | None:
    """The highest score; ``None`` for fewer than two."""
    found = [score for score in scores if score is not None]
    return max(found) if len(found) > 1 else None


def _mark(entry: Entry, score: float | None, kd: float | None, best: float | None) -> Entry:
    if score is None:
        return entry
    against = 0 if kd is None else (score > kd) - (score < kd)
    return replace(entry, best=score == best, against_kd=against)


def _rates(columns: Iterable[Column]) -> list[tuple[str, float]]:
    return [(column.student, column.lr) for column in columns]


def seed_records(
    comparison: Comparison, metric: Metric
) -> list[tuple[str, str, dict[int, float], PairedDifference | None, list[str]]]:
    """For each pair and row: its names, values by seed, paired difference from the plain student, and footnotes."""
    names = column_names(comparison.columns)
    records = []
    for column in comparison.columns:
        baseline = comparison.cell(STUDENT, column).of(metric)
        for label in sorted(comparison.labels, key=lambda label: label != STUDENT):
            cell = comparison.cell(label, column).of(metric)
            gap = paired_difference(cell, baseline) if label != STUDENT else None
            if cell.asked:
                records.append((names[column], label, cell.values, gap, cell.notes))
    return records


def as_records(result_table: ResultTable) -> list[dict[str, Any]]:
    """A table in long form: one mapping for each table cell."""
    return [
        {
            "table": result_table.title,
            "pair": heading.pair,
            "metric": heading.metric.name,
            "row": label,
            "state": entry.state,
            "mean": entry.cell.mean,
            "std": entry.cell.std,
            "n": entry.cell.n,
            "asked": entry.cell.asked,
            "not_applicable": entry.cell.not_applicable,
            "failed": entry.cell.failed,
            "published": None if entry.published is None or isnan(entry.published) else entry.published,
            "difference": entry.difference,
            "notes": [result_table.footnotes[number - 1] for number in entry.notes],
            "seeds": dict(entry.cell.values) if label != "teacher" else {},
        }
        for label, entries in result_table.rows
        for heading, entry in zip(result_table.headings, entries, strict=True)
    ]
