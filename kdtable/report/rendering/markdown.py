"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from kdtable.escaping import markdown as escaped
from kdtable.report.rendering.grid import Grid, grid, seed_grids
from kdtable.report.result_table import ResultTable


def markdown(tables: Sequence[ResultTable]) -> str:
    """Tables with their captions as lists."""
    return _markdown(map(grid, tables))


def seeds(tables: Sequence[ResultTable]) -> str:
    """Every seed of tables."""
    return _markdown(one for table in tables for one in seed_grids(table))


def _markdown(grids: Iterable[Grid]) -> str:
    return "\n\n".join(map(_one, grids))


def _one(shown: Grid) -> str:
    rows = [
        [*map(escaped, row[: shown.keys]), *(_bold(text, (i, j) in shown.marks) for j, text in _cells(row, shown.keys))]
        for i, row in enumerate(shown.rows)
    ]
    headings = [escaped(" ".join(lines)) for lines in shown.headings]
    table = tabulate(rows, headings, tablefmt="github", disable_numparse=True)
    captions = "\n".join(f"- {escaped(line)}" for line in shown.captions)
    return f"**{escaped(shown.title)}**\n\n{table}" + (f"\n\n{captions}" if captions else "")


def _cells(row: Sequence[str], keys: int) -> Iterable[tuple[int, str]]:
    return list(enumerate(row))[keys:]


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
