"""The HTML page: one file that loads nothing, and is complete without scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdtable.report.conclusions import sentences
from kdtable.report.page.cost import CostPanel, cost_panels
from kdtable.report.page.curves import CurvePanel, curve_panels
from kdtable.report.page.gains import GainMap, gain_map
from kdtable.report.page.grid import Grid, Key, grid, keys
from kdtable.report.page.published import Published, published
from kdtable.report.page.runs import packed_details, run_lines
from kdtable.report.page.seeds import Panel, seed_panels
from kdtable.report.page.summary import summary
from kdtable.report.page.views import View, views

if TYPE_CHECKING:
    import pandas as pd

    from kdtable.report.details import Details
    from kdtable.report.result_table import ResultTable

#: Size that no page exceeds without leaving something out, in bytes.
LIMIT: Final = 1_000_000
_TEMPLATES: Final = "kdtable.report.page"


@dataclass(frozen=True, slots=True)
class Part:
    """What the page shows of a table."""

    view: View
    grid: Grid
    keys: Sequence[Key]
    captions: Sequence[str]
    gains: GainMap | None
    seeds: Sequence[Panel]
    curves: Sequence[CurvePanel]
    costs: Sequence[CostPanel]
    published: Published | None
    statements: Sequence[str]

    @property
    def seeds_beside(self) -> bool:
        """Whether the picture of all seeds fits beside the table: there is one."""
        return len(self.view.table.headings) == 1


def page(
    tables: "Sequence[ResultTable]",
    runs: "pd.DataFrame",
    epochs: "pd.DataFrame",
    details: "Mapping[str, Details]",
) -> str:
    """A page that shows tables, their pictures and their runs.

        Path("report.html").write_text(page(tables, runs_frame(records), epochs_frame(store, ids), details))

    A page of more than 1 MB leaves out what a click on a cell shows, then the list of runs, and says so.

    Args:
        tables: tables of equal title are one table under several epoch rules; pictures show the first of them.
        runs: by :func:`kdtable.report.frames.runs_frame`.
        epochs: by :func:`kdtable.report.frames.epochs_frame`; runs without epochs have no curves.
        details: by run; a click on the cells of other runs leads to the list of runs.
    """
    found = views(tables, runs)
    curves = curve_panels(found, epochs)
    parts = [_part(view, curves[view.key], epochs) for view in found]
    whole = _rendered(found, parts, runs, details)
    notes = []
    for text, kept_runs in ((_NO_DETAILS, runs), (_NO_RUNS, runs.iloc[:0])):
        if len(whole.encode()) > LIMIT:
            notes.append(text)
            whole = _rendered(found, parts, kept_runs, {}, notes)
    return whole


_NO_DETAILS: Final = "Details of runs are left out, to keep this page small: kdtable show RUN prints them."
_NO_RUNS: Final = "The list of runs is left out, to keep this page small: kdtable report --format csv has it."


def _part(view: View, curves: Sequence[CurvePanel], epochs: "pd.DataFrame") -> Part:
    shown = grid(view)
    return Part(
        view=view,
        grid=shown,
        keys=keys(view, shown),
        captions=view.table.captions[1:],  # the first explains the marks of a terminal
        gains=gain_map(view),
        seeds=seed_panels(view),
        curves=curves,
        costs=cost_panels(view, epochs),
        published=published(view),
        statements=_statements(view.table),
    )


def _statements(table: "ResultTable") -> list[str]:
    """What the statistics of each metric say; nothing if nothing was measured."""
    if table.versus is None or table.values.empty:
        return []
    metrics = dict.fromkeys(heading.metric for heading in table.headings)
    return list(dict.fromkeys(sentence for metric in metrics for sentence in sentences(table, metric)))


def _rendered(
    found: Sequence[View],
    parts: Sequence[Part],
    runs: "pd.DataFrame",
    details: "Mapping[str, Details]",
    left_out: Sequence[str] = (),
) -> str:
    environment = Environment(
        loader=PackageLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html").render(
        css=_packaged("page.css"),
        js=_packaged("page.js"),
        summary=summary(found, runs if len(runs) else found[0].all_runs),
        parts=parts,
        runs=run_lines(runs),
        known=details.keys(),
        details=packed_details(details) if details else "",
        left_out=left_out,
    )


def _packaged(name: str) -> Markup:
    """One of our own files, as it is."""
    return Markup(files(_TEMPLATES).joinpath("templates", name).read_text("utf-8"))
