"""The sentences at the top of the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Final

from kdtable.report.page.views import View, short_pair
from kdtable.report.page.words import counted, listed, number, signed
from kdtable.report.result_table import BASELINES

if TYPE_CHECKING:
    import pandas as pd

#: Rows that a sentence names at most.
NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Summary:
    """The page's heading, what was run, and what came of it, a sentence or two for each table."""

    heading: str
    facts: str
    findings: tuple[str, ...]


def summary(views: Sequence[View], all_runs: "pd.DataFrame") -> Summary:
    """The page in a few sentences."""
    findings = []
    for view in views:
        said = f"{_best(view)} {_beyond(view)}".strip()
        findings.append(f"{view.table.title}: {said}" if said and len(views) > 1 else said)
    heading = views[0].table.title if len(views) == 1 else "Distillation tables"
    return Summary(heading, _facts(views, all_runs), tuple(filter(None, findings)))


def _facts(views: Sequence[View], all_runs: "pd.DataFrame") -> str:
    rows = {row for view in views for row in view.table.rows if row not in BASELINES}
    pairs = {heading.pair for view in views for heading in view.table.headings}
    seeds = max((view.table.seeds for view in views), default=0)
    counts = Counter(all_runs["status"])
    wanted = len(all_runs) - counts["n/a"]
    done = counts["done"]
    done_text = f"all {counted(done, 'run')} done" if done == wanted else f"{done:,} of {counted(wanted, 'run')} done"
    failed = f", {counts['failed']:,} failed" if counts["failed"] else ""
    what = [counted(len(rows), "method"), counted(len(pairs), "pair"), *([counted(seeds, "seed")] if seeds else [])]
    return " · ".join([*what, *([done_text + failed] if wanted else [])])


def _best(view: View) -> str:
    """Which row is best, with its number for one column, else by the number of columns."""
    found = [(number, heading) for number, heading in view.columns()]
    if not found:
        return "No run is done yet."
    if len(found) == 1:
        return _best_of(view, found[0][0])
    winners = Counter(row for column, _ in found if (row := _marked(view, column, "best")))
    if not winners:
        return ""
    extreme = "Highest" if _higher(view) else "Lowest"
    return f"{extreme} mean: {'; '.join(_tally(winners, len(found), most=3))}."


def _tally(counts: Mapping[str, int], of: int, most: int) -> list[str]:
    """Rows by their counts, the highest first: ``crd and kd on 3 of 5``; only the first ``most`` counts."""
    by_count: dict[int, list[str]] = {}
    for row, many in counts.items():
        by_count.setdefault(many, []).append(row)
    ordered = sorted(by_count.items(), reverse=True)[:most]
    return [f"{listed(rows)} on {many} of {of}" for many, rows in ordered]


def _higher(view: View) -> bool:
    return all(heading.metric.higher_is_better for heading in view.table.headings)


def _marked(view: View, column: int, mark: str) -> str | None:
    return next((row for row in view.table.rows if view.sheet.cells[row, column].mark == mark), None)


def _best_of(view: View, column: int) -> str:
    heading, row = view.table.headings[column], _marked(view, column, "best")
    if row is None:
        return ""
    line = view.sheet.cells[row, column]
    spread = f" ± {number(line.std)}" if isfinite(line.std) else ""
    ties = [other for other in view.table.rows if view.sheet.cells[other, column].mark == "tied"]
    tied = f"; its seeds do not set it apart from {listed(ties)}" if ties else ""
    unit = f" {heading.metric.unit}" if heading.metric.unit else ""
    return f"{row} is best on {short_pair(heading)} with {number(line.mean)}{spread}{unit}{tied}."


def _beyond(view: View) -> str:
    """Which rows are better than the one that others are compared with, beyond what seeds can do."""
    versus = view.sheet.versus
    if versus is None:
        return ""
    columns = list(view.columns())
    wins: dict[str, list[float]] = {}
    for column, heading in columns:
        better = "above" if heading.metric.higher_is_better else "below"
        for row in view.methods(column):
            line = view.sheet.cells[row, column]
            if line.against == better and row not in BASELINES:
                wins.setdefault(row, []).append(line.gap)
    if not view.table.cells["gap_low"].notna().any():
        return f"One seed in common cannot tell a method from {versus}."
    if not wins:
        return f"No method is better than {versus} by more than its seeds can tell."
    if len(columns) > 1:
        said = _tally({row: len(gaps) for row, gaps in wins.items()}, len(columns), most=4)
    else:
        by_gain = sorted(wins, key=lambda row: -abs(wins[row][0]))
        said = [f"{row} ({signed(wins[row][0])})" for row in by_gain[:NAMED]]
        said += [f"{len(wins) - NAMED} others"] if len(wins) > NAMED else []
        said = [listed(said)]
    return f"Better than {versus}, with a 95 % interval that excludes 0: {'; '.join(said)}."
