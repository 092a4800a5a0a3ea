"""Comparisons: runs that may be shown in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdtable.recipes.metrics import Metric
from kdtable.report.cells import CellValues

Identity = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A pair as it was run: ``teacher`` is ``None`` for plain students without a pair."""

    teacher: str | None
    origin: str
    student: str
    lr: float


@dataclass(slots=True)
class Comparison:
    """Runs that may be compared: rows of table cells, a column for each pair.

    Attributes:
        data: the data set's identity.
        data_key: its unique name.
        precision: of the networks, with or without teacher cache.
        recipe: without the learning rate.
        metrics: of the task; the first is the main one.
        columns: pairs in order of first appearance.
        cells: (row label, column) to cell.
        labels: row labels in order of first appearance.
        teachers: column to a cell of its teacher's accuracy, where it was measured.
        failed: ids of failed runs.
        sources: source hashes of the code behind the numbers.
        numerics: distinct numerics behind the numbers, each as canonical JSON.
        own: row name to its own recipe fields, in words.
        prepared: sentences on assistants and on what preparing rows trained.
        papers: papers under which its runs were requested.
    """

    data: Identity
    data_key: str
    precision: str
    recipe: Identity
    metrics: tuple[Metric, ...]
    columns: list[Column] = field(default_factory=list)
    cells: dict[tuple[str, Column], CellValues] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    teachers: dict[Column, CellValues] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    numerics: list[str] = field(default_factory=list)
    own: dict[str, list[str]] = field(default_factory=dict)
    prepared: list[str] = field(default_factory=list)
    papers: set[str] = field(default_factory=set)

    def cell(self, label: str, column: Column) -> CellValues:
        """The cell, empty if nothing was run."""
        return self.cells.get((label, column), CellValues())


def column_names(columns: Sequence[Column]) -> dict[Column, str]:
    """A short name for each column, with teacher origin and learning rate only where pairs are otherwise equal."""
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
