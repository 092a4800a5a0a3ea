"""The table: what each cell shows under each view, and its footnotes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final

from kdtable.errors import counted
from kdtable.report.page.views import Cell, Sheet, View
from kdtable.report.page.words import NOTHING, letters, number, signed
from kdtable.report.result_table import BASELINES, Heading

#: Tabs of epoch rules.
RULES: Final = {"last": "Last epoch", "best": "Best epoch", "lowest-loss": "Lowest loss", "validation": "By validation"}
ARROWS: Final = {"above": "▲", "below": "▼", "": ""}


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell under one view.

    Attributes:
        text: the number, or what stands in its place.
        spread: what follows the number after ±, or nothing.
        mark: best, tied, second, or nothing.
        against: above, below, or nothing.
        verdict: good or bad, if it is above or below.
        seeds: ``1:70.12 2:70.60``, for the tip.
        sort: what the column is sorted by; empty if there is no number.
        why: why there is no number.
    """

    text: str
    spread: str = ""
    mark: str = ""
    against: str = ""
    verdict: str = ""
    seeds: str = ""
    sort: str = ""
    why: str = ""

    @property
    def arrow(self) -> str:
        """A mark that needs no colour."""
        return ARROWS[self.against]


@dataclass(frozen=True, slots=True)
class GridCell:
    """A cell under all views.

    ``few`` says how many seeds are done if that is not all of them; ``notes`` are marks of footnotes.
    """

    shown: tuple[Shown, ...]
    runs: tuple[str, ...]
    notes: str
    few: str
    published: str
    difference: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for its template: tabs are views by name, rows are labels with their cells."""

    tabs: tuple[str, ...]
    headings: tuple[Heading, ...]
    several_metrics: bool
    rows: tuple[tuple[str, tuple[GridCell, ...]], ...]
    baselines: tuple[tuple[str, tuple[GridCell, ...]], ...]
    published: bool


def grid(view: View) -> Grid:
    """The table with a tab for each epoch rule, and one for gains if there are any."""
    table, versus = view.table, view.sheet.versus
    measured = any(True for _ in view.columns())
    tabs = [RULES.get(sheet.table.rule, sheet.table.rule) for sheet in view.sheets] if measured else []
    rows = {row: tuple(_cell(view, row, column) for column in range(len(table.headings))) for row in table.rows}
    return Grid(
        tabs=(*tabs, f"Gain over {versus}") if versus else tuple(tabs),
        headings=table.headings,
        several_metrics=len({heading.metric for heading in table.headings}) > 1,
        rows=tuple((row, cells) for row, cells in rows.items() if row not in BASELINES),
        baselines=tuple((row, cells) for row, cells in rows.items() if row in BASELINES),
        published=bool(table.cells["published"].notna().any()),
    )


def _cell(view: View, row: str, column: int) -> GridCell:
    line = view.sheet.cells[row, column]
    shown = [_shown(sheet, row, column) for sheet in view.sheets]
    if view.sheet.versus:
        shown.append(_gain(view.sheet, row, column))
    better = "above" if view.table.headings[column].metric.higher_is_better else "below"
    verdicts = {"": "", better: "good"}
    shown = [replace(one, verdict=verdicts.get(one.against, "bad")) for one in shown]
    return GridCell(
        shown=tuple(shown),
        runs=(*view.sheet.runs.get((row, column), ()), *view.unfinished_of(row, column)),
        notes=",".join(map(letters, line.notes)),
        few=_few(line, view.table.seeds) if row != "teacher" else "",
        published=number(line.published) if isfinite(line.published) else "",
        difference=signed(line.difference) if isfinite(line.difference) else "",
    )


def _few(line: Cell, seeds: int) -> str:
    if line.n < line.asked:
        return f"{line.n}/{line.asked}"
    return f"n={line.n}" if 0 < line.n < seeds else ""


def _shown(sheet: Sheet, row: str, column: int) -> Shown:
    line = sheet.cells[row, column]
    if not isfinite(line.mean):
        return _absent(line)
    seeds = sheet.seeds.get((row, column), {}) if row != "teacher" else {}
    return Shown(
        text=number(line.mean),
        spread=number(line.std) if isfinite(line.std) else "",
        mark=line.mark,
        against=line.against,
        seeds=_by_seed({seed: number(value) for seed, value in seeds.items()}),
        sort=f"{line.mean:.4f}",
    )


def _absent(line: Cell) -> Shown:
    if line.published_only:
        return Shown("†", why="published only, not trained here")
    if isinstance(line.not_applicable, str):
        return Shown("N/A", why=line.not_applicable)
    failed = f"{line.failed} of {counted(line.asked, 'run')} failed" if line.failed else ""
    return Shown(NOTHING, why=failed or ("not done yet" if line.asked else "not run"))


def _gain(sheet: Sheet, row: str, column: int) -> Shown:
    line = sheet.cells[row, column]
    if row == sheet.versus:
        return Shown("0", why="what gains are measured against", sort="0")
    if not isfinite(line.gap):
        return Shown(NOTHING, why="no seed in common with what gains are measured against")
    theirs = sheet.seeds.get((str(sheet.versus), column), {})
    ours = sheet.seeds.get((row, column), {})
    gaps = {seed: signed(ours[seed] - theirs[seed]) for seed in ours if seed in theirs}
    return Shown(
        text=signed(line.gap),
        spread=number((line.gap_high - line.gap_low) / 2) if isfinite(line.gap_low) else "",
        against=line.against,
        seeds=_by_seed(gaps),
        sort=f"{line.gap:.4f}",
    )


def _by_seed(values: Mapping[int, str]) -> str:
    return " ".join(f"{seed}:{text}" for seed, text in sorted(values.items()))


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of the key: a sample as a cell shows it, and what it means."""

    sample: str
    words: str
    mark: str = ""


def keys(view: View, shown: Grid) -> list[Key]:
    """How to read the table: an entry for each mark that it has."""
    cells = [cell for _, row in (*shown.baselines, *shown.rows) for cell in row]
    ones = [one for cell in cells for one in cell.shown]
    example = next((one.text for one in ones if one.mark == "best"), "00.00")
    marks, arrows = {one.mark for one in ones}, {one.arrow for one in ones}
    gain = "; of a gain: half of its 95 % interval, paired by seed" if view.sheet.versus else ""
    texts = {cell.shown[0].text for cell in cells}
    wanted = [
        (Key(example, "best of its column", "best"), "best" in marks),
        (
            Key(example, "not told apart from the best: the 95 % interval of the difference includes 0", "tied"),
            "tied" in marks,
        ),
        (Key(example, "best of the others", "second"), "second" in marks),
        (
            Key("▲ ▼", f"above, below {view.sheet.versus}: the 95 % interval of the difference excludes 0"),
            arrows > {""},
        ),
        (Key("±", f"standard deviation over seeds{gain}"), any(one.spread for one in ones)),
        (Key("grey", "the published number, and ours minus it", "grey"), shown.published),
        (Key("2/3", "done of the runs asked for"), any("/" in cell.few for cell in cells)),
        (Key("n=2", "fewer seeds than elsewhere in the table"), any("n=" in cell.few for cell in cells)),
        (Key("†", "published only, not trained here"), "†" in texts),
        (Key(NOTHING, "no finished run"), NOTHING in texts),
    ]
    return [key for key, there in wanted if there]
