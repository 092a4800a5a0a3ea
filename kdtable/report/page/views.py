"""What the sections share: a table under each epoch rule, and its cells by row and column."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

from kdtable.report.result_table import Heading, ResultTable

if TYPE_CHECKING:
    import pandas as pd

#: A line of ``ResultTable.cells``, with the columns as attributes.
Cell = Any


def lines_of(frame: "pd.DataFrame") -> Iterable[Any]:
    """The lines of a frame, with its columns as attributes."""
    lines: Iterable[Any] = frame.itertuples(index=False)
    return lines


@dataclass(frozen=True)
class Sheet:
    """A result table whose cells can be looked up.

    Attributes:
        table: the table.
    """

    table: ResultTable

    @cached_property
    def cells(self) -> Mapping[tuple[str, int], Cell]:
        """Cells by row and number of the heading."""
        return {(line.row, line.column): line for line in lines_of(self.table.cells)}

    @cached_property
    def seeds(self) -> Mapping[tuple[str, int], Mapping[int, float]]:
        """Values by seed, by row and number of the heading."""
        found: dict[tuple[str, int], dict[int, float]] = {}
        for line in lines_of(self.table.values):
            found.setdefault((line.row, line.column), {})[line.seed] = line.value
        return found

    @cached_property
    def runs(self) -> Mapping[tuple[str, int], list[str]]:
        """Ids of finished runs, by row and number of the heading."""
        found: dict[tuple[str, int], list[str]] = {}
        for line in lines_of(self.table.values):
            if line.row != "teacher":
                found.setdefault((line.row, line.column), []).append(line.run)
        return found

    @property
    def versus(self) -> str | None:
        """The row that gains are measured against, if the table has it and a gain can be computed."""
        named = self.table.versus
        return named if named is not None and bool(self.table.cells["gap"].notna().any()) else None


@dataclass(frozen=True)
class View:
    """One table of the page, under each epoch rule that it was made for.

    Attributes:
        key: its anchor in the page.
        sheets: by rule; the first is the one that all pictures show.
        all_runs: the frame of all runs, for what a table leaves out: failed and planned ones.
    """

    key: str
    sheets: tuple[Sheet, ...]
    all_runs: "pd.DataFrame" = field(compare=False)

    @property
    def table(self) -> ResultTable:
        """The table under its first rule."""
        return self.sheets[0].table

    @property
    def sheet(self) -> Sheet:
        """The first rule's sheet."""
        return self.sheets[0]

    @cached_property
    def _unfinished(self) -> Mapping[tuple[str, str], list[str]]:
        """Ids of runs without a number, by row and pair."""
        runs = self.all_runs[self.all_runs["status"] != "done"]
        return {key: list(ids) for key, ids in runs.groupby(["row", "pair"])["run"]}  # type: ignore[misc]

    def unfinished_of(self, row: str, column: int) -> list[str]:
        """Ids of a cell's runs that gave no number: failed, planned or not applicable."""
        name, heading = ("vanilla" if row == "student" else row), self.table.headings[column]
        return [run for pair in (heading.pair, heading.student) for run in self._unfinished.get((name, pair), ())]

    def columns(self) -> Iterator[tuple[int, Heading]]:
        """Numbers and headings of the columns that have a number of ours."""
        for number, heading in enumerate(self.table.headings):
            if any(isfinite(self.sheet.cells[row, number].mean) for row in self.methods(number)):
                yield number, heading

    def methods(self, column: int) -> list[str]:
        """Rows with a number of ours in a column, the best mean first; the teacher is left out."""
        sign = -1 if self.table.headings[column].metric.higher_is_better else 1
        means = {row: self.sheet.cells[row, column].mean for row in self.table.rows if row != "teacher"}
        return sorted((row for row, mean in means.items() if isfinite(mean)), key=lambda row: sign * means[row])


def views(tables: Sequence[ResultTable], all_runs: "pd.DataFrame") -> list[View]:
    """Group tables that differ in the epoch rule alone: those of equal title, in order of appearance."""
    seen: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, int], list[Sheet]] = {}
    for table in tables:
        found.setdefault((table.title, seen[table.title, table.rule]), []).append(Sheet(table))
        seen[table.title, table.rule] += 1
    return [View(f"t{number}", tuple(sheets), all_runs) for number, sheets in enumerate(found.values(), start=1)]


def short_pair(heading: Heading) -> str:
    """A pair in words: teacher, arrow, student."""
    return f"{heading.teacher} → {heading.student}" if heading.teacher else heading.student


def column_title(view: View, heading: Heading) -> str:
    """The title of a column's picture: its pair, and the metric where the table has several."""
    several = len({other.metric for other in view.table.headings}) > 1
    return f"{short_pair(heading)}, {heading.metric.words}" if several else short_pair(heading)
