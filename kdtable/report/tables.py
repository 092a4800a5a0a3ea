"""Tables to be printed: from frames, and from a paper's table beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any

from kdtable.papers import Pair, Paper, Table
from kdtable.report.aggregate import (
    STUDENT,
    Cell,
    Column,
    Frame,
    PairedDifference,
    column_names,
    paired_difference,
)
from kdtable.report.departures import departures, nearest
from kdtable.report.footnotes import numerics_difference

BASELINES = ("teacher", "student")
METRICS = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One cell as it is shown: ours, and what the paper printed for it.

    ``published`` is NaN where the paper says N/A, and ``None`` where it has no such row, is not compared with, or
    (``unread``) could not be read.
    ``notes`` are numbers of the sheet's footnotes.
    """

    cell: Cell
    published: float | None = None
    unread: bool = False
    best: bool = False
    against_kd: int = 0  # 1 above, -1 below, 0 equal or not to be compared
    notes: tuple[int, ...] = ()

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        if self.cell.mean is None or self.published is None or isnan(self.published):
            return None
        return self.cell.mean - self.published


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: labelled rows of entries over named columns, with its captions and footnotes (numbered from 1)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    captions: tuple[str, ...]
    compared: bool = False
    seeds: int = field(default=0)
    footnotes: tuple[str, ...] = ()


def frame_sheet(frame: Frame, epoch: str, metric: str = "top1") -> Sheet:
    """All that a frame holds: methods down, pairs across."""
    names = column_names(frame.columns)
    order = sorted(frame.labels, key=lambda label: label != STUDENT)
    rows = [("teacher", tuple(Entry(_teacher_cell(frame, c)) for c in frame.columns))]
    rows += [
        ("student" if label == STUDENT else label, tuple(Entry(frame.cell(label, c)) for c in frame.columns))
        for label in order
    ]
    title = f"{frame.data_key}: {METRICS[metric]} (%)"
    paper, changed = nearest(frame.recipe, _rates(frame.columns))
    captions = [_recipe(frame), *_differs(f"that of {paper.name}", changed), *_notes(frame)]
    return _finished(title, [names[c] for c in frame.columns], rows, captions, epoch)


def paper_sheet(
    paper: Paper, table: Table, frame: Frame | None, epoch: str, *, compare: bool, metric: str = "top1"
) -> Sheet:
    """A published table's rows and columns, filled from a frame (``None`` where nothing was run).

    Rows that we ran beside the paper's own (such as combinations with KD) follow at the end.
    """
    extra = [label for label in (frame.labels if frame else ()) if label not in (*table.rows, STUDENT)]
    columns = [_match(frame, pair, paper) for pair in table.pairs]
    rows = []
    for label in (*BASELINES, *table.rows, *extra):
        cells = (_cell(frame, label, column) for column in columns)
        none: tuple[float | None, ...] = (None,) * len(columns)
        shown = table.published.get(label, none) if compare else none
        unread = compare and label in table.published
        entries = (Entry(cell, value, unread and value is None) for cell, value in zip(cells, shown, strict=True))
        rows.append((label, tuple(entries)))
    captions = [f"Published numbers: {table.source}."] if compare else []
    if frame is not None:
        changed = departures(frame.recipe, _rates(c for c in columns if c is not None), paper)
        captions += [_recipe(frame), *_differs("the paper's", changed), *_left_out(frame, table, columns)]
        captions += _notes(frame)
    sheet = _finished(f"{table.title}: {METRICS[metric]} (%)", [str(p) for p in table.pairs], rows, captions, epoch)
    return replace(sheet, compared=compare)


def fits_paper(frame: Frame, paper: Paper, table: Table) -> bool:
    """Whether a frame holds a run of one of the table's pairs on its data set."""
    return frame.data["kind"] == table.data and any(_match(frame, pair, paper) for pair in table.pairs)


def _match(frame: Frame | None, pair: Pair, paper: Paper) -> Column | None:
    """The frame's column for a pair: at the paper's own learning rate if there is one, else the first."""
    own = paper.recipe_for(pair.student).lr
    columns = [c for c in (frame.columns if frame else ()) if (c.teacher, c.student) == (pair.teacher, pair.student)]
    return next((c for c in columns if c.lr == own), columns[0] if columns else None)


def _left_out(frame: Frame, table: Table, shown: Sequence[Column | None]) -> list[str]:
    """Columns of the table's pairs that have no place in it, named."""
    names = column_names(frame.columns)
    pairs = {(pair.teacher, pair.student) for pair in table.pairs}
    others = [names[c] for c in frame.columns if (c.teacher, c.student) in pairs and c not in shown]
    return [f"Left out, and shown without --table: {', '.join(others)}."] if others else []


def _cell(frame: Frame | None, label: str, column: Column | None) -> Cell:
    if frame is None or column is None:
        return Cell()
    if label == "teacher":
        return _teacher_cell(frame, column)
    return frame.cell(STUDENT if label == "student" else label, column)


def _teacher_cell(frame: Frame, column: Column) -> Cell:
    return frame.teachers.get(column, Cell())


def _finished(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, tuple[Entry, ...]]],
    captions: Iterable[str],
    epoch: str,
) -> Sheet:
    counts = [entry.cell.n for label, entries in rows if label != "teacher" for entry in entries]
    seeds = max(counts, default=0)
    legend = f"{_counted(seeds)}, {epoch} epoch"
    marks = "n = fewer seeds; a/b = a of b asked runs are done; — = no finished run"
    ranks = "bold or * = best method; ↑/↓ = above/below KD"
    footnotes = tuple(dict.fromkeys(note for _, entries in rows for entry in entries for note in entry.cell.notes))
    numbers = {note: number for number, note in enumerate(footnotes, start=1)}
    shown = [(label, tuple(_numbered(entry, numbers) for entry in entries)) for label, entries in _marked(rows)]
    legends = (f"{legend}; {marks}; {ranks}.", *captions)
    return Sheet(title, tuple(columns), tuple(shown), legends, seeds=seeds, footnotes=footnotes)


def _numbered(entry: Entry, numbers: Mapping[str, int]) -> Entry:
    return replace(entry, notes=tuple(numbers[note] for note in entry.cell.notes))


def _counted(seeds: int) -> str:
    if seeds == 0:
        return "No finished run"
    return "One seed" if seeds == 1 else f"Mean ± sample standard deviation over {seeds} seeds"


def _marked(rows: Sequence[tuple[str, tuple[Entry, ...]]]) -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    methods = {label: entries for label, entries in rows if label not in BASELINES}
    marked = []
    for label, entries in rows:
        shown = (
            tuple(_mark(label, entry, i, methods) for i, entry in enumerate(entries)) if label in methods else entries
        )
        marked.append((label, shown))
    return tuple(marked)


def _mark(label: str, entry: Entry, column: int, methods: Mapping[str, tuple[Entry, ...]]) -> Entry:
    mean = entry.cell.mean
    if mean is None:
        return entry
    means = [m for entries in methods.values() if (m := entries[column].cell.mean) is not None]
    kd = methods["kd"][column].cell.mean if "kd" in methods else None
    against = 0 if kd is None or label == "kd" else (mean > kd) - (mean < kd)
    return replace(entry, best=mean == max(means) and len(means) > 1, against_kd=against)


def _recipe(frame: Frame) -> str:
    r = frame.recipe
    drops = ", ".join(str(m) for m in r["milestones"])
    rates = ", ".join(sorted({f"{c.lr:g}" for c in frame.columns}))
    rate = f" lr {rates}" if rates else ""  # there is no column where only what others learn from was trained
    schedule = f" x {r['lr_factor']:g} after epochs {drops}" if drops else ""
    nesterov = ", Nesterov" if r["nesterov"] else ""
    fill = "mirrored" if r.get("crop_fill") == "reflect" else "zero-padded"
    return (
        f"Recipe: {r['epochs']} epochs, batch {r['batch_size']}, SGD{rate}{schedule}, momentum {r['momentum']:g}"
        f"{nesterov}, weight decay {r['weight_decay']:g}, {fill} crop {r['crop_padding']}; {frame.precision}."
    )


def _rates(columns: Iterable[Column]) -> list[tuple[str, float]]:
    return [(column.student, column.lr) for column in columns]


def _differs(what: str, changed: Sequence[str]) -> list[str]:
    return [f"The recipe differs from {what}: {'; '.join(changed)}."] if changed else []


def _notes(frame: Frame) -> list[str]:
    notes = [f"Other recipe of {row}: {'; '.join(fields)}." for row, fields in frame.own.items()]
    notes += frame.prepared
    if frame.failed:
        count = "1 failed run is" if len(frame.failed) == 1 else f"{len(frame.failed)} failed runs are"
        notes.append(f"{count} left out; 'kdtable status' has the reasons.")
    names = column_names(frame.columns)
    for (label, column), cell in frame.cells.items():
        if cell.not_applicable:
            notes.append(f"N/A: {label} on {names[column]}, because {cell.not_applicable}.")
    if any("#" in label for label in frame.labels):
        notes.append(
            "Rows marked # differ in the version of a method or network, in an input normalisation, in the epochs of "
            "an earlier stage, in an assistant, or in whether the teacher's outputs were kept on disk."
        )
    if len(frame.numerics) > 1:
        notes.append(f"Made under {len(frame.numerics)} kinds of numerics: {numerics_difference(frame.numerics)}.")
    if len(frame.sources) > 1:
        notes.append(f"Made by {len(frame.sources)} states of the code: {', '.join(sorted(frame.sources))}.")
    return notes


def seed_records(frame: Frame) -> list[tuple[str, str, dict[int, float], PairedDifference | None, list[str]]]:
    """For each pair and row: every seed's accuracy, the paired difference from the plain student, and footnotes."""
    names = column_names(frame.columns)
    records = []
    for column in frame.columns:
        baseline = frame.cell(STUDENT, column)
        for label in sorted(frame.labels, key=lambda label: label != STUDENT):
            cell = frame.cell(label, column)
            gap = paired_difference(cell, baseline) if label != STUDENT else None
            if cell.asked:
                records.append((names[column], label, cell.values, gap, cell.notes))
    return records


def as_records(sheet: Sheet) -> list[dict[str, Any]]:
    """A sheet in long form: one mapping per cell."""
    return [
        {
            "table": sheet.title,
            "pair": column,
            "row": label,
            "mean": entry.cell.mean,
            "std": entry.cell.std,
            "n": entry.cell.n,
            "asked": entry.cell.asked,
            "not_applicable": entry.cell.not_applicable,
            "failed": entry.cell.failed,
            "published": None if entry.published is None or isnan(entry.published) else entry.published,
            "difference": entry.difference,
            "notes": [sheet.footnotes[number - 1] for number in entry.notes],
            "seeds": dict(entry.cell.values) if label != "teacher" else {},
        }
        for label, entries in sheet.rows
        for column, entry in zip(sheet.columns, entries, strict=True)
    ]
