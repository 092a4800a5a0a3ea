"""Typed pairs, rows and tables of papers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from kdtable.models.foreign import split_names
from kdtable.recipes.metrics import METRICS, Metric, metric_of
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from kdtable.tasks import DEFAULT as DEFAULT_TASK
from kdtable.typed import changes


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher and a student network, by canonical name."""

    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher}:{self.student}"


@dataclass(frozen=True, slots=True)
class Row:
    """Settings of one method.

        Row("kd", terms={"ce": 0.1, "kd": 0.9}, params={"kd_temperature": 4.0})

    Attributes:
        name: name of the row.
        terms: loss weights of the main stage, in the order of addition.
        params: hyper-parameters.
        stages: stage name to epochs, for stages before the main one, at the paper's full length.
        student_params: further hyper-parameters for students whose name matches a pattern (``wrn_*``), or for pairs if
            the pattern has a colon (``resnet56:*``).
        recipe: recipe fields that differ from the paper's.
        student: the network that the row trains, from ``{teacher}`` and ``{student}`` of the pair.
        taught_by: row that trains this row's teacher; empty for the pair's own teacher.
        assistant: kind of data set to the student of the row ``taught_by``; empty if that is the pair's teacher.
        from_teacher: whether training starts from the weights of the pair's teacher.
        schedules: term to the schedule of its weight over the main stage, at the paper's full length.
        pretrained: whether the student starts from published ImageNet weights.
        pair_terms: term weights for pairs that match a pattern (``*:ShuffleV2``); the last match wins.
        as_guest: hyper-parameters to use under another paper's recipe.
        test_loss: whether to measure the loss on the test images after every epoch, for tables that choose the epoch by
            it; ``None`` (not set) counts as no.
        task: what its runs do, where that is asked of a row alone; else the paper says it.
    """

    name: str
    terms: Mapping[str, float]
    params: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    student_params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    student: str = "{student}"
    taught_by: str = ""
    assistant: Mapping[str, str] = field(default_factory=dict)
    from_teacher: bool = False
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    pretrained: bool = False
    pair_terms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    as_guest: Mapping[str, Any] = field(default_factory=dict)
    test_loss: bool | None = None
    task: str = DEFAULT_TASK

    def terms_for(self, teacher: str | None, student: str) -> dict[str, float]:
        """Loss weights for a pair of canonical names, in the order of addition."""
        own = [terms for pattern, terms in self.pair_terms.items() if fnmatchcase(f"{teacher}:{student}", pattern)]
        return {key: value for terms in (self.terms, *own) for key, value in terms.items()}

    def with_params(self, params: Mapping[str, Any]) -> "Row":
        """A copy with changed hyper-parameters, for all students."""
        others = {
            pattern: {key: value for key, value in own.items() if key not in params}
            for pattern, own in self.student_params.items()
        }
        return replace(self, params={**self.params, **params}, student_params=others)

    def params_for(self, student: str, teacher: str | None = None) -> dict[str, Any]:
        """Hyper-parameters for a student's canonical name, and its teacher's."""
        pair = f"{teacher}:{student}"
        own = [
            params
            for pattern, params in self.student_params.items()
            if fnmatchcase(pair if ":" in pattern else student, pattern)
        ]
        return {key: value for params in (self.params, *own) for key, value in params.items()}


@dataclass(frozen=True, slots=True)
class Table:
    """A published table.

    Attributes:
        name: as ``--table`` takes it.
        title: title.
        source: where its numbers were read.
        data: kind of data set.
        metrics: metrics of its cells, by the names of :data:`kdtable.recipes.metrics.METRICS`.
        epoch: reported epoch: one of :data:`kdtable.recipes.metrics.EPOCHS`.
        pairs: its columns.
        rows: its method rows, top to bottom, after "teacher" and "student".
        published_only: rows whose methods we lack, or that are not trained by the table's recipe.
        row_sources: where a row's numbers were read, and how they were made, where that differs from row to row.
        published: row name ("teacher" and "student" included) to one value for each metric of each pair, pair by pair:
            NaN if the paper says N/A, ``None`` if its number could not be read.
    """

    name: str
    title: str
    source: str
    data: str
    metrics: tuple[str, ...]
    epoch: str
    pairs: tuple[Pair, ...]
    rows: tuple[str, ...]
    published: Mapping[str, tuple[float | None, ...]]
    published_only: tuple[str, ...] = ()
    row_sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> tuple[str, ...]:
        """The rows that can be trained here, the plain student first."""
        return ("vanilla", *(row for row in self.rows if row not in self.published_only))

    def printed_as(self, metric: Metric) -> Metric | None:
        """The table's own metric that ``metric`` is computed from; ``None`` if there is none."""
        same = [METRICS[own] for own in self.metrics if METRICS[own].stored == metric.stored]
        return metric if metric in same else next(iter(same), None)

    def printed(self, row: str, column: int, metric: Metric) -> float | None:
        """The published number of a row for the pair at index ``column``, converted to ``metric``.

        Returns:
            NaN if the paper says N/A; ``None`` if it has no number, or none that could be read.
        """
        own = self.printed_as(metric)
        if own is None or row not in self.published:
            return None
        value = self.published[row][column * len(self.metrics) + self.metrics.index(own.name)]
        return None if value is None else metric.converted(value, own)


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of a paper on another kind of data set, or in another reading.

    Attributes:
        recipe: changed recipe fields.
        student_recipes: student to its own recipe fields; ``None`` keeps the paper's.
        rows: row name to changed fields; in a reading, to changed hyper-parameters.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    student_recipes: Mapping[str, Mapping[str, Any]] | None = None
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def row_changes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a row from its TOML table.

    Raises:
        ValueError: an unknown field, or a value of a wrong type.
    """
    found = changes(Row, raw)
    return found | ({"recipe": changes(Recipe, found["recipe"], "recipe field")} if "recipe" in found else {})


@dataclass(frozen=True, slots=True)
class TableFile:
    """The TOML of a published table; see :class:`Table`.

    TOML has no null: an empty list marks an unreadable row, an empty string an unreadable cell.
    """

    title: str
    source: str
    epoch: str
    pairs: tuple[str, ...]
    published: Mapping[str, tuple[float | Literal[""], ...]]
    data: str = ""
    metric: str = ""
    metrics: tuple[str, ...] = ()
    published_only: tuple[str, ...] = ()
    row_sources: Mapping[str, str] = field(default_factory=dict)


def table_of(name: str, raw: TableFile, data: str = "") -> Table:
    """Make a published table from its TOML; ``data`` is the paper's own data set.

    Raises:
        ValueError: a row has too few or too many numbers, or a published-only row has none.
    """
    pairs = tuple(Pair(*split_names(pair)) for pair in raw.pairs)
    metrics = tuple(metric_of(text) for text in raw.metrics or (raw.metric,))
    count = len(pairs) * len(metrics)
    published = {
        row: tuple(None if value == "" else value for value in values) or (None,) * count
        for row, values in raw.published.items()
    }
    for row, values in published.items():
        if len(values) != count:
            each = f" and {len(metrics)} metrics" if len(metrics) > 1 else ""
            raise ValueError(f"table {name}, row {row}: {len(values)} numbers for {len(pairs)} pairs{each}")
    if stray := set(raw.row_sources) - published.keys():
        raise ValueError(f"table {name}: {', '.join(sorted(stray))} has a source, but is no row")
    if lost := set(raw.published_only) - published.keys():
        raise ValueError(f"table {name}: {', '.join(sorted(lost))} is published only, but has no numbers")
    return Table(
        name=name,
        title=raw.title,
        source=raw.source,
        data=raw.data or data,
        metrics=metrics,
        epoch=raw.epoch,
        pairs=pairs,
        rows=tuple(row for row in published if row not in ("teacher", "student")),
        published=published,
        published_only=raw.published_only,
        row_sources=raw.row_sources,
    )
