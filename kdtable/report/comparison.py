"""Comparisons: runs that may be shown in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from kdtable.models.sums import networks_of
from kdtable.recipes.metrics import Metric

Identity = Mapping[str, Any]
#: Columns of `Comparison.cells`, and the first of `Comparison.runs`.
CELLS: Final = ("label", "column", "group", "paper", "asked", "failed", "not_applicable", "notes")
RUNS: Final = ("group", "run", "seed", "epoch")


@dataclass(frozen=True, slots=True)
class Column:
    """A pair as it was run: ``teacher`` is ``None`` for plain students without a pair."""

    teacher: str | None
    origin: str
    student: str
    lr: float


@dataclass(slots=True)
class Comparison:
    """Runs that may be compared.

    Attributes:
        data: the data set's identity.
        data_key: its unique name.
        precision: of the networks, with or without teacher cache.
        recipe: without the learning rate.
        metrics: of the task; the first is the main one.
        rule: epoch shown, of :data:`kdtable.recipes.metrics.EPOCHS`.
        columns: pairs in order of first appearance.
        labels: row labels in order of first appearance.
        cells: a line per label and column that was asked for: ``label`` ("teacher" for what teachers reached),
            ``column`` (its index), ``group`` (number of the protocol), ``paper`` (that it was requested of), ``asked``,
            ``failed``, ``not_applicable`` (a reason or ``None``) and ``notes`` (footnotes).
        runs: a line per finished run of these groups, and per measured file of a teacher: ``group``, ``run``, ``seed``,
            ``epoch``, and a column per stored metric.
        failed: number of failed runs.
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
    rule: str = "last"
    columns: list[Column] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    cells: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CELLS)))
    runs: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(RUNS)))
    failed: int = 0
    sources: set[str] = field(default_factory=set)
    numerics: list[str] = field(default_factory=list)
    own: dict[str, list[str]] = field(default_factory=dict)
    prepared: list[str] = field(default_factory=list)
    papers: set[str] = field(default_factory=set)


def column_names(columns: Sequence[Column]) -> dict[Column, str]:
    """A short name for each column, with teacher origin and learning rate only where pairs are otherwise equal."""
    plain = {c: f"{c.teacher}:{c.student}" if c.teacher else c.student for c in columns}
    names = {}
    for column in columns:
        name = plain[column]
        twins = [other for other, text in plain.items() if text == name]
        if len({c.origin for c in twins}) > 1 and column.teacher:
            files = zip(networks_of(column.teacher), column.origin.split("+"), strict=True)
            name = f"{'+'.join(f'{network}@{origin[:8]}' for network, origin in files)}:{column.student}"
        if len({c.lr for c in twins}) > 1:
            name += f" lr {column.lr:g}"
        names[column] = name
    return names
