"""From stored runs to the cells of tables: means over seeds, and over nothing else.

Runs may stand in one table when data set, precision, component versions and recipe (but for the learning rate,
which belongs to the student) are equal: that is a *frame*. A cell holds the seeds of one protocol.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Meaning = Mapping[str, Any]
#: A row's own loss weights and hyper-parameters for a student; ``None`` for a row that is not known.
Defaults = Callable[[str, str], tuple[Mapping[str, float], Mapping[str, Any]] | None]
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
    """

    values: dict[int, float] = field(default_factory=dict)
    asked: int = 0
    failed: int = 0
    not_applicable: str | None = None

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
        return statistics.stdev(self.values.values()) if self.n > 1 else None


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
        precision: of the networks.
        recipe: without the learning rate.
        columns: pairs in order of first appearance.
        cells: (row label, column) to cell.
        labels: row labels in order of first appearance.
        teachers: column to its teacher's accuracy in percent, where it was measured.
        failed: ids of runs that failed.
        continued: ids of runs that were continued under other numerics than they began with.
        sources: hashes of the code that made the numbers.
    """

    data: Meaning
    data_key: str
    precision: str
    recipe: Meaning
    columns: list[Column] = field(default_factory=list)
    cells: dict[tuple[str, Column], Cell] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    teachers: dict[Column, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    continued: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)

    def cell(self, label: str, column: Column) -> Cell:
        """The cell, empty where nothing was run."""
        return self.cells.get((label, column), Cell())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run stands: its frame, column and row."""

    frame: Frame
    column: Column
    label: str
    run: Mapping[str, Any]


def frames(
    runs: Iterable[Mapping[str, Any]],
    teachers: Iterable[Mapping[str, Any]],
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
    found: dict[str, Frame] = {}
    places = _places(runs, found, defaults)
    protocols: dict[tuple[int, Column, str], list[str]] = {}
    for place in places:
        known = protocols.setdefault((id(place.frame), place.column, place.label), [])
        if place.run["protocol_id"] not in known:
            known.append(place.run["protocol_id"])
    for place in places:
        shared = protocols[id(place.frame), place.column, place.label]
        # The same row under another version of a component, or another normalisation: never one cell.
        mark = f" #{place.run['protocol_id'][:6]}" if len(shared) > 1 else ""
        _add(place.frame, place.column, place.run, place.label + mark, f"{epoch}_{metric}")
    measured = {(row["sha256"], row["data"]): 100 * row[metric] for row in teachers}
    for place in places:
        reached = measured.get((place.run["teacher_sha256"], place.frame.data_key))
        if reached is not None:
            place.frame.teachers[place.column] = reached
    return list(found.values())


def _places(runs: Iterable[Mapping[str, Any]], found: dict[str, Frame], defaults: Defaults) -> list[_Place]:
    """A place for each taught run, and one per pair of its student for each run without a teacher."""
    taught: list[_Place] = []
    alone: list[_Place] = []
    for run in runs:
        meaning = json.loads(run["meaning"])
        teacher = meaning["teacher"] or {}
        origin = teacher.get("run") or teacher.get("sha256") or ""
        column = Column(run["teacher"], origin, run["student"], meaning["recipe"]["lr"])
        place = _Place(_frame_of(found, run, meaning), column, row_label(run, meaning, defaults), run)
        (taught if meaning["teacher"] else alone).append(place)
    for place in taught:
        if place.column not in place.frame.columns:
            place.frame.columns.append(place.column)
    for place in alone:
        own = place.column
        same = [c for c in place.frame.columns if (c.student, c.lr) == (own.student, own.lr)]
        if not same:
            place.frame.columns.append(own)
        taught += [replace(place, column=column) for column in same or [own]]
    return taught


def _frame_of(found: dict[str, Frame], run: Mapping[str, Any], meaning: Meaning) -> Frame:
    recipe = {key: value for key, value in meaning["recipe"].items() if key != "lr"}
    key = json.dumps([meaning["data"], meaning["precision"], recipe, meaning["versions"]], sort_keys=True)
    return found.setdefault(key, Frame(meaning["data"], run["data"], meaning["precision"], recipe))


def _add(frame: Frame, column: Column, run: Mapping[str, Any], label: str, value: str) -> None:
    if label not in frame.labels:
        frame.labels.append(label)
    cell = frame.cells.setdefault((label, column), Cell())
    if run["status"] == "n/a":
        cell.not_applicable = run["reason"] or "the method cannot be run on it"
        return
    cell.asked += 1
    if run["status"] == "failed":
        cell.failed += 1
        frame.failed.add(run["id"])
    if run["status"] == "done":
        cell.values[run["seed"]] = 100 * run[value]
        history = json.loads(run["provenance"] or "[]")
        frame.sources.update(entry["source"] for entry in history)
        if len({json.dumps(entry["numerics"], sort_keys=True) for entry in history}) > 1:
            frame.continued.add(run["id"])


def row_label(run: Mapping[str, Any], meaning: Meaning, defaults: Defaults) -> str:
    """The row's name, and in brackets every weight and hyper-parameter that is not the row's default."""
    own = defaults(run["row"], run["student"])
    if own is None:
        return str(run["row"])
    terms, params = own
    changed = [f"weight.{k}={v!r}" for k, v in dict(meaning["terms"]).items() if terms.get(k) != v]
    changed += [f"{k}={v!r}" for k, v in meaning["params"].items() if params.get(k) != v]
    return f"{run['row']} ({', '.join(changed)})" if changed else str(run["row"])


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
