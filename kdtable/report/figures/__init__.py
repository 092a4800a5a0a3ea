"""Figures for papers: one column wide, readable without colour, drawn by matplotlib (extra ``[figures]``).

One module a kind. A kind has ``draw(data) -> Figure``, and takes everything from a
:class:`~kdtable.report.figures.data.FigureData`. Nothing here is imported before a figure is drawn.

    write("seeds", FigureData.of(result_table, runs, epochs_of), Path("seeds.pdf"))
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kdtable.errors import BadRequest, unknown
from kdtable.files.atomic import written_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from kdtable.report.figures.data import FigureData

#: Kinds of figures, and the modules that draw them.
KINDS: Final = {
    "curves": "kdtable.report.figures.curves",
    "gains": "kdtable.report.figures.gains",
    "seeds": "kdtable.report.figures.seeds",
    "cost": "kdtable.report.figures.cost",
    "published": "kdtable.report.figures.published",
    "ranks": "kdtable.report.figures.ranks",
}

#: Formats, by the file's ending, with the metadata that would differ between equal figures.
FORMATS: Final[dict[str, dict[str, Any]]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def check(kind: str, path: Path) -> None:
    """Check what a user asks for before anything is read.

    Raises:
        BadRequest: an unknown kind or ending, or matplotlib is missing.
    """
    if kind not in KINDS:
        raise unknown("figure", kind, KINDS)
    check_file(path)


def check_file(path: Path) -> None:
    """Check a figure's file before anything is read.

    Raises:
        BadRequest: an unknown ending, or matplotlib is missing.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise BadRequest(f"a figure's file ends in {', '.join(f'.{name}' for name in FORMATS)}, not '{path.name}'")
    if find_spec("matplotlib") is None:
        raise BadRequest("figures need matplotlib: pip install 'kdtable[figures]'")


def write(kind: str, data: "FigureData", path: Path) -> None:
    """Draw a figure into a file, which is replaced only when the figure is whole. Equal figures have equal bytes.

    Args:
        kind: one of :data:`KINDS`.
        data: what to draw.
        path: the file; its ending names the format, one of :data:`FORMATS`.

    Raises:
        BadRequest: see :func:`check`; or there is too little to draw, or the file cannot be written.
    """
    check(kind, path)
    save(lambda: import_module(KINDS[kind]).draw(data), path)


def save(draw: "Callable[[], Figure]", path: Path) -> None:
    """Save what ``draw`` draws in the style of all figures; as :func:`write`.

    Raises:
        BadRequest: see :func:`check_file`; or the file cannot be written.
    """
    check_file(path)
    from kdtable.report.figures.style import settle, styled

    form = path.suffix.lower().removeprefix(".")
    with styled():
        figure = draw()
        settle(figure)
        try:
            with written_whole(path) as file:
                figure.savefig(file, format=form, metadata=FORMATS[form])
        except OSError as error:
            raise BadRequest(f"{path} cannot be written ({error.strerror}): name another --output") from error
