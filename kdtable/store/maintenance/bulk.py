"""Read and write whole runs, with all their results, many at a time."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from kdtable.recipes.record import EpochRecord
from kdtable.store.records import Result, RunRecord, unpacked
from kdtable.store.rows import Reader, batches, insert_new, legible, result_row, run_row
from kdtable.store.schema import histories, origin_row, origins, protocol_row, protocols, results, runs


@dataclass(frozen=True, slots=True)
class WholeRun:
    """A run with all its results.

    Attributes:
        record: the run, with its current result.
        results: all its results.
        packed: source hash to the packed epochs of that result.
    """

    record: RunRecord
    results: Sequence[Result] = ()
    packed: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.record.id

    @property
    def code(self) -> str | None:
        """The hash of its current result."""
        return self.record.result.code if self.record.result else None

    def history(self, code: str | None = None) -> tuple[EpochRecord, ...]:
        """The epochs of its current result, or of that under ``code``, in order of training.

        Raises:
            Damage: they cannot be read.
        """
        content = self.packed.get(code or self.code or "")
        with legible(f"the history of run {self.id}"):
            return () if content is None else unpacked(content)


def whole_runs(db: sa.Connection, ids: Sequence[str]) -> list[WholeRun]:
    """The runs of ``ids`` (a few hundred at most) that the store has, in the order of planning."""
    reader = Reader(db)
    found = reader.runs(ids)
    content: dict[int, dict[str, bytes]] = defaultdict(dict)
    for row in db.execute(sa.select(histories).where(histories.c.run.in_([run.key for run in found]))):
        content[row.run][row.code] = row.content
    return [WholeRun(run, reader.results(run.key), content[run.key]) for run in found]


def add_whole(db: sa.Connection, given: Iterable[WholeRun]) -> None:
    """Add runs with all their results, replacing runs of the same ids, but for their finished results by other code."""
    new = {run.id: run for run in given}
    if not new:
        return
    made = [origin_row(json.loads(text)) for run in new.values() for r in run.results for text in r.provenance.origins]
    insert_new(db, origins, list({row["id"]: row for row in made}.values()))
    shared = {run.record.protocol.id: run.record.protocol for run in new.values()}
    insert_new(db, protocols, [protocol_row(protocol) for protocol in shared.values()])
    known = _keys(db, new)
    for run_id, key in known.items():
        codes = [result.code for result in new[run_id].results]
        replaced = sa.or_(results.c.finished.is_(None), results.c.code.in_(codes))
        db.execute(results.delete().where(results.c.run == key, replaced))
        db.execute(runs.update().where(runs.c.key == key).values(_row(new[run_id])))
    if rows := [_row(run) for run_id, run in new.items() if run_id not in known]:
        db.execute(runs.insert(), rows)
    keys = _keys(db, new)
    if kept := [_result(keys[run.id], result) for run in new.values() for result in run.results]:
        db.execute(results.insert(), kept)
    if content := [
        {"run": keys[run.id], "code": code, "content": text}
        for run in new.values()
        for code, text in run.packed.items()
    ]:
        db.execute(histories.insert(), content)


def _keys(db: sa.Connection, ids: Iterable[str]) -> dict[str, int]:
    query = sa.select(runs.c.id, runs.c.key)
    return {row.id: row.key for some in batches(ids) for row in db.execute(query.where(runs.c.id.in_(some)))}


def _row(run: WholeRun) -> dict[str, Any]:
    # A run in training is not claimed in the copy: there it can be continued.
    status = "planned" if run.record.status == "running" else run.record.status
    return run_row(run.record) | {"status": status, "claimed_by": None, "code": run.code}


def _result(key: int, result: Result) -> dict[str, Any]:
    return result_row(key, result, [origin_row(json.loads(text))["id"] for text in result.provenance.origins])
