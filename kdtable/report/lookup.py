"""Find runs by what a user writes: an id, the beginning of one, or a cell of a table."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from kdtable import papers
from kdtable.data.spec import BUILT_IN
from kdtable.errors import BadRequest, unknown
from kdtable.models.foreign import split_names
from kdtable.models.names import stored_base as base_name
from kdtable.models.sums import canonical_teacher
from kdtable.papers import Pair
from kdtable.report.aggregate import STUDENT
from kdtable.report.labels import row_label
from kdtable.report.plugged import marked
from kdtable.store.records import RunRecord

#: Runs that an ambiguous id names in its error.
NAMED: Final = 5


def find_runs(runs: Sequence[RunRecord], text: str) -> list[RunRecord]:
    """The runs that a user means: one by its id or an unambiguous beginning of it, or all of a cell.

    A cell is TABLE:ROW:COLUMN: ``crd-1:kd:resnet56:resnet20``. TABLE is a published table, or a data set as reports
    title it (``tiny-1a2b3c4d``) or by its name alone (``tiny``). ROW is a method's row, with or without the settings
    in brackets. COLUMN is a pair, or a student.

    Raises:
        BadRequest: no such run or cell, or several runs whose ids begin so.
    """
    if not runs:
        raise BadRequest("the store holds no run yet: start with 'kdtable run'")
    if ":" in text:
        return _cell(runs, text)
    found = [run for run in runs if text and run.id.startswith(text)]
    if len(found) > 1:
        some = ", ".join(run.id for run in found[:NAMED]) + (", ..." if len(found) > NAMED else "")
        raise BadRequest(f"{len(found)} runs have ids that begin with {text} ({some}): write more of it")
    if not found:
        raise unknown("run", text, (run.id for run in runs))
    return found


def _cell(runs: Sequence[RunRecord], text: str) -> list[RunRecord]:
    table, row, column = [*text.split(":", 2), ""][:3]
    if not row or not column:
        raise BadRequest(f"a cell is TABLE:ROW:COLUMN, such as crd-1:kd:resnet56:resnet20, not '{text}'")
    if row == "teacher":
        raise BadRequest("the teacher of a column is no run: 'kdtable check-teachers' says what it reached")
    columns = _of_row(_of_table(runs, table), table, STUDENT if row == "student" else row)
    try:
        wanted = ":".join(map(canonical_teacher, split_names(column)))
    except BadRequest:
        wanted = column
    if wanted not in columns:
        raise unknown(f"column of {table}, row {row},", column, columns)
    return columns[wanted]


def _of_table(runs: Sequence[RunRecord], name: str) -> list[tuple[str, RunRecord]]:
    """The runs of a table, each with the name of its column; a plain student's is in those of all its pairs."""
    tables = {key: table for paper in map(papers.load, papers.names()) for key, table in paper.tables.items()}
    if name in tables:
        kind = tables[name].data
        inside = [run for run in runs if run.protocol.identity["data"]["kind"] == kind]
        if not (found := _in_columns(inside, tables[name].pairs)):
            raise BadRequest(f"the store holds no run of table {name}: 'kdtable run --pairs {name}' trains it")
        return found
    inside = [run for run in runs if name in (run.data, _data_name(run))]
    if not inside:
        raise unknown("table", name, [*tables, *(title for run in runs for title in (run.data, _data_name(run)))])
    pairs = {Pair(run.teacher or "", base_name(run.student)) for run in inside}
    return _in_columns(inside, pairs)


def _in_columns(runs: Iterable[RunRecord], pairs: Collection[Pair]) -> list[tuple[str, RunRecord]]:
    found = []
    for run in runs:
        student = base_name(run.student)
        columns = [pair for pair in pairs if pair.student == student and run.teacher in (None, pair.teacher)]
        found += [(str(pair), run) for pair in columns if pair.teacher]
        found += [(student, run)] if columns else []
    return found


def _of_row(found: Sequence[tuple[str, RunRecord]], table: str, row: str) -> dict[str, list[RunRecord]]:
    """The runs of a table's row by column."""
    labels: dict[str, dict[str, list[RunRecord]]] = {}
    for column, run in found:
        identity = run.protocol.identity
        names = {run.row, row_label(run, identity, papers.defaults)}
        if sources := marked(identity):
            names |= {f"{name} @{sources}" for name in names}
        for label in names:
            labels.setdefault(label, {}).setdefault(column, []).append(run)
    if row not in labels:
        raise unknown(f"row of {table}", row, labels)
    return labels[row]


def _data_name(run: RunRecord) -> str:
    """The name of a run's data set without the hash that its key has."""
    if run.data in BUILT_IN:
        return run.data
    size = run.protocol.identity["data"].get("image_size")
    return run.data.removesuffix(f"-{size}").rpartition("-")[0] or run.data
