"""Print result tables: one module a format."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from kdtable.errors import unknown
from kdtable.report.result_table import ResultTable

#: Formats, and the functions that print tables in them.
FORMATS: Final = {
    "terminal": "terminal:terminal",
    "markdown": "markdown:markdown",
    "csv": "csv:csv",
    "json": "json:json",
    "latex": "latex:latex",
}
#: The format that shows runs too; `kdtable.report.stored_page` makes it.
PAGE: Final = "html"
#: Of every seed, and of the table's shape.
_BY_SEED: Final = {"terminal": "terminal:seeds", "markdown": "markdown:seeds"}
_WIDE: Final = {"csv": "csv:wide"}


def known(form: str) -> str:
    """A format's name, if there is such a format.

    Raises:
        BadRequest: there is none.
    """
    if form not in (*FORMATS, PAGE):
        raise unknown("format", form, (*FORMATS, PAGE))
    return form


def render(tables: Sequence[ResultTable], form: str, *, wide: bool = False, by_seed: bool = False) -> str:
    """Tables in one of :data:`FORMATS`.

    Args:
        tables: to print.
        form: format.
        wide: of CSV, the table's shape.
        by_seed: on a terminal and in Markdown, every seed.

    Raises:
        BadRequest: unknown format.
    """
    place = (_BY_SEED if by_seed else _WIDE if wide else FORMATS)[known(form)]
    module, _, name = place.partition(":")
    function: Callable[[Sequence[ResultTable]], str] = getattr(import_module(f"{__name__}.{module}"), name)
    return function(tables)
