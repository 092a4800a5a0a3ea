"""From stored runs to the cells of tables: means over seeds, and over nothing else.

Runs may stand in one table when data set, precision, component versions and recipe (but for the learning rate,
which belongs to the student) are equal: that is a *frame*. A cell holds the seeds of one protocol.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdtable.models.names import base_name
from kdtable.papers import shared_recipe
from kdtable.report.departures import differences
from kdtable.report.flags import Measured, measured
from kdtable.report.footnotes import cell_notes, numerics_of, one_of_each, sources_of
from kdtable.report.labels import Defaults, row_label
from kdtable.runs import split_precision
from kdtable.teachers.claims import shortfall

Meaning = Mapping[str, Any]
Row = Mapping[str, Any]
#: Row of the plain student.
STUDENT = "vanilla"


@dataclass(slots=True)
class Cell:
    """The seeds behind one number, in percent.

    Attributes:
        values: seed to accuracy of the finished runs.
        asked: number of runs that were ever asked for.
        failed: how many of them failed.
        not_applicable: why the row's method cannot be run on the pair, where it cannot.
        notes: what a reader must know of its runs, as sentences.
    """

    values: dict[int, float] = field(default_factory=dict)
    asked: int = 0
    failed: int = 0
    not_applicable: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of finished seeds."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over seeds; ``None`` without any."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (n - 1); ``None`` below two seeds."""
        mean = self.mean
        if mean is None or self.n == 1:
            return None
        # Not statistics.stdev, whose exact fractions take most of a large report's time.
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values.values()) / (self.n - 1))


#: Rows that prepare something for others, and what tables call it: no rows of theirs.
PREPARATIONS = {"heads": "Heads of", "tofd-teacher": "Classifiers of TOFD's"}


@dataclass(frozen=True, slots=True)
class Column:
    """A pair as it was run: ``teacher`` is ``None`` for students that nobody taught here."""

    teacher: str | None
    origin: str
    student: str
    lr: float


@dataclass(slots=True)
class Frame:
    """Runs that may be compared: rows of cells over columns.

    Attributes:
        data: the data set's meaning.
        data_key: its unique name.
        precision: of the networks, whether or not their teacher's outputs were cached.
        recipe: without the learning rate.
        columns: pairs in order of first appearance.
        cells: (row label, column) to cell.
        labels: row labels in order of first appearance.
        teachers: column to a cell of its teacher's accuracy, where it was measured.
        failed: ids of runs that failed.
        sources: hashes of the code that made the numbers.
        numerics: that the numbers were made under, each as canonical JSON.
        own: row name to the fields of its recipe that are its own, in words.
        prepared: what was trained for others to learn from, in words, with the accuracies of several classifiers.
    """

    data: Meaning
    data_key: str
    precision: str
    recipe: Meaning
    columns: list[Column] = field(default_factory=list)
    cells: dict[tuple[str, Column], Cell] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    teachers: dict[Column, Cell] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    numerics: list[str] = field(default_factory=list)
    own: dict[str, list[str]] = field(default_factory=dict)
    prepared: list[str] = field(default_factory=list)

    def cell(self, label: str, column: Column) -> Cell:
        """The cell, empty where nothing was run."""
        return self.cells.get((label, column), Cell())


@dataclass(frozen=True, slots=True)
class _Group:
    """The seeds of one protocol, and where they stand; a student's without a teacher are one cell in many columns."""

    frame: Frame
    column: Column
    label: str
    protocol: str
    runs: Sequence[Row]
    cell: Cell


def frames(
    runs: Iterable[Row],
    teachers: Iterable[Row],
    defaults: Defaults,
    epoch: str = "last",
    metric: str = "top1",
) -> list[Frame]:
    """Sort the store's runs into frames.

    Args:
        runs: rows of the store.
        teachers: the store's measured teachers.
        defaults: gives a row's own settings for a student, so that a label can name what was changed.
        epoch: "last" or "best" (of the highest top-1): which epoch counts.
        metric: "top1" or "top5".
    """
    known = measured(teachers)
    found: dict[str, Frame] = {}
    groups = _groups(runs, found, defaults)
    protocols: dict[tuple[int, Column, str], set[str]] = {}
    for group in groups:
        protocols.setdefault((id(group.frame), group.column, group.label), set()).add(group.protocol)
    for group in groups:
        shared = protocols[id(group.frame), group.column, group.label]
        # The same row under another version of a component, or another normalisation: never one cell.
        label = group.label + (f" #{group.protocol[:6]}" if len(shared) > 1 else "")
        if label not in group.frame.labels:
            group.frame.labels.append(label)
        group.frame.cells[label, group.column] = group.cell
    for group in {id(group.cell): group for group in groups}.values():
        _fill(group, f"{epoch}_{metric}", known)
    _teach(groups, known, metric)
    return list(found.values())


def _groups(runs: Iterable[Row], found: dict[str, Frame], defaults: Defaults) -> list[_Group]:
    """A group for each taught protocol, and one per pair of its student for each protocol without a teacher.

    What a protocol means is looked at once, since a store may hold very many runs.
    """
    seeds: dict[tuple[str, str], list[Row]] = {}
    for run in runs:
        seeds.setdefault((run["protocol_id"], run["row"]), []).append(run)
    placed = []
    for (protocol, row), rows in seeds.items():
        run, meaning = rows[0], json.loads(rows[0]["meaning"])
        frame = _frame_of(found, run, meaning)
        if row in PREPARATIONS:
            frame.prepared += [_prepared(done) for done in rows if done["status"] == "done"]
            continue
        if (note := _assisted(run, meaning)) and note not in frame.prepared:
            frame.prepared.append(note)
        column = Column(run["teacher"], _origin(run, meaning), base_name(run["student"]), meaning["recipe"]["lr"])
        placed.append(_Group(frame, column, row_label(run, meaning, defaults), protocol, rows, Cell()))
    taught = [group for group in placed if group.column.teacher is not None]
    for group in taught:
        if group.column not in group.frame.columns:
            group.frame.columns.append(group.column)
    for group in placed:
        if group.column.teacher is None:
            own = group.column
            same = [c for c in group.frame.columns if (c.student, c.lr) == (own.student, own.lr)]
            if not same:
                group.frame.columns.append(own)
            taught += [replace(group, column=column) for column in same or [own]]
    return taught


def _origin(run: Row, meaning: Meaning) -> str:
    """What tells teachers of one name apart: the run that trained it, or its checksum."""
    teacher = meaning["teacher"] or {}
    if teacher.get("network") != run["teacher"]:
        return run["teacher_sha256"] or ""  # a run made it of the pair's own teacher
    return teacher.get("run") or teacher.get("sha256") or ""


def _assisted(run: Row, meaning: Meaning) -> str | None:
    """Which other network a student learned from than the teacher that its column names."""
    teacher = meaning["teacher"]
    if teacher is None or base_name(teacher["network"]) == run["teacher"]:
        return None
    made = f"run {teacher['run'][:8]}" if "run" in teacher else f"file {teacher['sha256'][:8]}"
    taught = f"{run['row']} of {base_name(run['student'])} learned from {teacher['network']} ({made})"
    return f"{taught}, and that from {run['teacher']}."


def _prepared(run: Row) -> str:
    """What a run prepared, and how good its classifiers are."""
    branches = json.loads(run["branches"] or "[]")
    what = f"{PREPARATIONS[run['row']]} {base_name(run['student'])} (run {run['id'][:8]}, seed {run['seed']})"
    accuracies = ", ".join(f"{100 * top1:.2f}" for top1 in branches)
    return f"{what}: {accuracies} %, shallow to deep; its own classifier {100 * run['last_top1']:.2f} %."


def _frame_of(found: dict[str, Frame], run: Row, meaning: Meaning) -> Frame:
    shared = shared_recipe(run["paper"], run["row"], meaning["recipe"])
    recipe = {key: value for key, value in shared.items() if key != "lr"}
    # A cached teacher changes the last bits of some rows only; their cells say so.
    precision, _ = split_precision(meaning["precision"])
    key = json.dumps([meaning["data"], precision, recipe, meaning["versions"]], sort_keys=True)
    frame = found.setdefault(key, Frame(meaning["data"], run["data"], precision, recipe))
    if own := differences(meaning["recipe"], shared):
        frame.own[run["row"]] = own
    return frame


def _fill(group: _Group, value: str, known: Measured) -> None:
    frame, cell = group.frame, group.cell
    for run in group.runs:
        if run["status"] == "n/a":
            cell.not_applicable = run["reason"] or "the method cannot be run on it"
            continue
        cell.asked += 1
        if run["status"] == "failed":
            cell.failed += 1
            frame.failed.add(run["id"])
        if run["status"] == "done":
            cell.values[run["seed"]] = 100 * run[value]
    made = one_of_each(run for run in group.runs if run["status"] == "done")
    cell.notes = cell_notes(group.runs, frame.data["num_classes"], known)
    frame.sources.update(source for run in made for source in sources_of(run))
    frame.numerics = list(dict.fromkeys([*frame.numerics, *numerics_of(made)]))


def _teach(groups: Iterable[_Group], known: Measured, metric: str) -> None:
    """Note what the teachers of columns reached: one file each as a rule, but its training run may be repeated."""
    columns: dict[tuple[int, Column], tuple[Frame, dict[tuple[str, str], Row]]] = {}
    for group in groups:
        if group.column.teacher is not None and group.runs[0]["teacher_sha256"] is not None:
            _, files = columns.setdefault((id(group.frame), group.column), (group.frame, {}))
            keys = dict.fromkeys((run["teacher_sha256"], run["data"]) for run in group.runs)
            files.update((key, known[key]) for key in keys if key in known)
    for (_, column), (frame, files) in columns.items():
        if files:
            values = {number: 100 * row[metric] for number, row in enumerate(files.values())}
            notes = [f"{found[0].upper()}{found[1:]}." for row in files.values() if (found := shortfall(row))]
            frame.teachers[column] = Cell(values, asked=len(values), notes=notes)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean over common seeds of (row - baseline), in points, and its standard error (``None`` below two seeds)."""

    mean: float
    standard_error: float | None
    n: int


def paired_difference(cell: Cell, baseline: Cell) -> PairedDifference | None:
    """Compare two cells seed by seed, which takes out what the seeds have in common; ``None`` without one."""
    seeds = sorted(cell.values.keys() & baseline.values.keys())
    if not seeds:
        return None
    gaps = [cell.values[seed] - baseline.values[seed] for seed in seeds]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
    return PairedDifference(statistics.fmean(gaps), error, len(gaps))


def column_names(columns: Sequence[Column]) -> dict[Column, str]:
    """A short name for each column; what tells equal pairs apart is added only where it is needed."""
    plain = {c: f"{c.teacher}:{c.student}" if c.teacher else c.student for c in columns}
    names = {}
    for column in columns:
        name = plain[column]
        twins = [other for other, text in plain.items() if text == name]
        if len({c.origin for c in twins}) > 1 and column.teacher:
            name = f"{column.teacher}@{column.origin[:8]}:{column.student}"
        if len({c.lr for c in twins}) > 1:
            name += f" lr {column.lr:g}"
        names[column] = name
    return names
