"""A finished table, as the modules of :mod:`kdtable.report.rendering` print it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kdtable.recipes.metrics import CLASSIFICATION, Metric

if TYPE_CHECKING:
    from pandas import DataFrame

#: Labels of the rows that are no methods.
BASELINES: Final = ("teacher", "student")

#: Columns of `ResultTable.cells` and `ResultTable.values`.
CELLS: Final = (
    "row", "column", "pair", "metric", "mean", "std", "n", "asked", "failed", "not_applicable", "state", "published",
    "printed", "difference", "published_only", "group", "mark", "against", "gap", "gap_low", "gap_high", "gap_n",
    "notes",
)  # fmt: skip
VALUES: Final = (
    "paper", "data", "row", "column", "pair", "teacher", "student", "metric", "seed", "run", "rule", "epoch", "value",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Heading:
    """A column: its text, which leaves out what is the same in all columns, its pair and its metric.

    ``teacher`` is ``None`` for a plain student without a pair.
    """

    text: str
    pair: str
    metric: Metric
    teacher: str | None
    student: str


@dataclass(frozen=True, slots=True)
class ResultTable:
    """A table: rows of cells under headings, with captions and footnotes.

    Attributes:
        title: with metrics and units.
        data: key of the data set.
        headings: of the columns.
        rows: labels from top to bottom, "teacher" and "student" first.
        cells: a line per row and heading, in order, with the columns `CELLS`:
            row, column: label, and index of the heading;
            pair, metric: the heading's, by name;
            mean, std, n: over finished seeds, in the unit shown; NaN where there is none (``std``: below two);
            asked, failed: numbers of runs;
            not_applicable: why the method cannot be run on the pair, or ``None``;
            state: "done", "partly done", "not done", "none", "not applicable" or "published only", see `state_of`;
            published: the paper's number; NaN without one;
            printed: "number", "N/A" (the paper says so), "not available" (it could not be read), or empty;
            difference: ours minus the paper's; NaN without both;
            published_only: whether the row is not trained here;
            group: number that is equal for rows of one recipe, which alone are ranked;
            mark: "best", "tied" (with the best), "second" or empty;
            against: of a method, "above" or "below" the row ``versus`` in value, where the paired interval excludes 0;
                else empty;
            gap, gap_low, gap_high, gap_n: paired difference to the row ``versus``, its 95 % interval (NaN without), and
                the number of common seeds;
            notes: numbers of footnotes, from 1.
        values: a line per finished run and heading, with the columns `VALUES`; ``paper`` is the one that it was
            requested of; ``rule`` and ``epoch`` say which epoch ``value`` (in the unit shown) is of.
        captions: sentences below it, the legend first.
        footnotes: sentences, numbered from 1.
        changes_of: the captions on changes from the paper's recipe.
        compared: whether published numbers are shown.
        versus: label of the row that others are compared with; ``None`` if the table has no such row.
        seeds: largest number of seeds behind a cell.
        metrics: shown.
        main: metric that chooses the best epoch.
        rule: epoch shown, of :data:`kdtable.recipes.metrics.EPOCHS`.
    """

    title: str
    data: str
    headings: tuple[Heading, ...]
    rows: tuple[str, ...]
    cells: "DataFrame"
    values: "DataFrame"
    captions: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()
    changes_of: tuple[str, ...] = ()
    compared: bool = False
    versus: str | None = None
    seeds: int = 0
    metrics: tuple[Metric, ...] = ()
    main: Metric = CLASSIFICATION[0]
    rule: str = "last"

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts of the headings."""
        return tuple(heading.text for heading in self.headings)
