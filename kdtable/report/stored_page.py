"""The HTML page of tables, with what the store knows of their runs."""

from collections.abc import Collection, Sequence
from typing import Final

import pandas as pd

from kdtable.report.details import Details, details_of, made_by
from kdtable.report.frames import epochs_frame, runs_frame
from kdtable.report.rendering.html import page
from kdtable.report.result_table import ResultTable
from kdtable.report.warnings import measured
from kdtable.store import RunRecord, Store

#: Columns of a frame of epochs.
EPOCHS: Final = ("run", "stage", "epoch", "kind", "name", "value")
#: Runs whose details are read at most; the page has no room for those of more.
DETAILED: Final = 4_000


def stored_page(tables: Sequence[ResultTable], store: Store | None) -> str:
    """The page of tables, and of the runs of their pairs.

    Args:
        tables: tables of equal title are one table under several epoch rules.
        store: where their runs are; ``None`` if only published numbers are shown.
    """
    if store is None:
        return page(tables, runs_frame([]), pd.DataFrame(columns=EPOCHS), {})
    records = store.runs()
    runs = runs_frame(records)
    runs = runs[_shown(tables, runs)].reset_index(drop=True)
    found = _details(store, records, set(runs["run"])) if len(runs) <= DETAILED else {}
    return page(tables, runs, epochs_frame(store, runs["run"]), found)


def _details(store: Store, records: Sequence[RunRecord], wanted: Collection[str]) -> dict[str, Details]:
    """Details of ``wanted`` runs, with one query for what they share."""
    teachers, known = measured(store.teacher_accuracies()), {run.id: run for run in records}
    found = {}
    for run in filter(lambda run: run.id in wanted, records):
        prerequisites = [known[need] for need in made_by(run.protocol.identity) if need in known]
        found[run.id] = details_of(run, store.history(run.id), teachers, prerequisites)
    return found


def _shown(tables: Sequence[ResultTable], runs: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a run gave a number of a table, or was to give one."""
    numbers = {run for table in tables for run in table.values["run"]}
    pairs = {name for table in tables for heading in table.headings for name in (heading.pair, heading.student)}
    lacking = (runs["status"] != "done") & runs["pair"].isin(pairs) & runs["data"].isin({t.data for t in tables})
    return runs["run"].isin(numbers) | lacking
