"""Rows of a store, as `run` writes them, with made-up results."""

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdtable import papers
from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.execution.run_grid import store_row
from kdtable.methods import get
from kdtable.methods.objective import Objective
from kdtable.papers import Pair, Paper, defaults
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.recipes.metrics import METRICS, Metric
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from kdtable.report.aggregate import comparisons
from kdtable.report.comparison import Column, Comparison
from kdtable.report.result_table import ResultTable
from kdtable.store import Store
from kdtable.store.maintenance.bulk import WholeRun, add_whole
from kdtable.store.records import Chosen, Provenance, Result, RunRecord, TeacherRecord
from kdtable.store.schema import content_id, run_id

CRD = papers.load("crd")
CIFAR100 = BUILT_IN["cifar100"]
TOP1 = METRICS["top1"]


def teacher(network: str = "resnet56", sha256: str | None = None, **changes: Any) -> FileTeacher:
    ref = FileTeacher(network, CIFAR100.mean, CIFAR100.std, sha256 or network.ljust(64, "0"), Path(network))
    return replace(ref, **changes)


def stored(
    row: str,
    seed: int = 1,
    top1: float | None = 0.7,
    *,
    student: str = "resnet20",
    taught_by: FileTeacher | None = None,
    data: DataSpec = CIFAR100,
    recipe: Recipe = CRD.recipe,
    precision: str = "fp32",
    best: float | None = None,
    top5: float | None = None,
    status: str | None = None,
    provenance: str | None = None,
    terms: dict[str, float] | None = None,
    params: dict[str, Any] | None = None,
    schedules: dict[str, Schedule] | None = None,
    start: FileTeacher | None = None,
    test_loss: bool | None = None,
    paper: Paper = CRD,
) -> RunRecord:
    """A run as the store gives it: done with ``top1``, or ``status`` without a result."""
    settings = paper.row(row)
    used = None if row == "vanilla" else taught_by or teacher()
    run = Run(
        row,
        student,
        data,
        recipe,
        Objective.of(
            get(row).hyper, {**settings.terms, **(terms or {})}, {**settings.params, **(params or {})}, schedules
        ),
        seed,
        precision,
        used,
        start=start,
        test_loss=test_loss,
    )
    planned = PlannedRun(Pair(used.network if used else "resnet56", student), row, run, paper=paper.name)
    return made(store_row(planned), status or "done", top1, best, top5, provenance)


def made(
    run: RunRecord,
    status: str = "done",
    top1: float | None = 0.7,
    best: float | None = None,
    top5: float | None = None,
    provenance: str | None = None,
    **others: float,
) -> RunRecord:
    """A planned run with ``top1`` in its last epoch, and ``others`` beside it."""
    chosen: dict[str, Chosen] = {}
    if top1 is not None:
        for which, value in (("last", top1), ("best", top1 if best is None else best)):
            chosen[which] = (run.epochs, {"top1": value, "top5": value if top5 is None else top5, **others})
    origins = [json.dumps(origin, sort_keys=True) for origin in json.loads(provenance or "[]")]
    return replace(run, status=status, result=Result("s1", Provenance.of(origins), "then", "now", chosen))


def measured_on(
    top1: float,
    top5: float = 0.9,
    *,
    sha256: str | None = None,
    data: str = "cifar100",
    network: str = "resnet56",
    images: int = 10000,
    claimed: float | None = None,
) -> TeacherRecord:
    """What a teacher, by default that of all runs, reached."""
    return TeacherRecord(sha256 or teacher().sha256, data, network, {"top1": top1, "top5": top5}, images, claimed)


def with_identity(run: RunRecord, **changes: Any) -> RunRecord:
    """A run with other entries in its identity."""
    text = json.dumps({**run.protocol.identity, **changes}, separators=(",", ":"))
    protocol = replace(run.protocol, id=content_id(text), text=text)
    return replace(run, id=run_id(protocol.identity, run.seed), protocol=protocol)


def fill(store: Store, rows: Iterable[RunRecord], teachers: Iterable[TeacherRecord] = ()) -> None:
    """Put runs and measured teachers into a store, whatever they claim to be."""
    with store.database.write() as db:
        add_whole(db, [WholeRun(run, [run.result] if run.result else []) for run in rows])
    for record in teachers:
        store.record_teacher(record)


def framed(
    *rows: RunRecord,
    teachers: tuple[TeacherRecord, ...] = (),
    epoch: str = "last",
    stored: Iterable[str] = ("top1", "top5"),
) -> list[Comparison]:
    """The comparisons of a store with these runs."""
    with TemporaryDirectory() as folder, closing(Store(Path(folder))) as store:
        fill(store, rows, teachers)
        return comparisons(store, defaults, epoch, stored)


def only(*rows: RunRecord, **options: Any) -> Comparison:
    (frame,) = framed(*rows, **options)
    return frame


def column(frame: Comparison, student: str = "resnet20") -> Column:
    (found,) = (c for c in frame.columns if c.student == student)
    return found


@dataclass(frozen=True)
class Cell:
    """A cell of a comparison: its values by seed, in a metric's unit, and what is said of it."""

    values: dict[int, float]
    asked: int
    failed: int
    not_applicable: str | None
    notes: list[str]


def cell(frame: Comparison, label: str, where: Column | None = None, metric: Metric = TOP1) -> Cell:
    index = frame.columns.index(where or column(frame))
    cells = frame.cells[(frame.cells["label"] == label) & (frame.cells["column"] == index)]
    if cells.empty:
        return Cell({}, 0, 0, None, [])
    (found,) = cells.itertuples(index=False)
    runs = frame.runs[frame.runs["group"] == found.group].dropna(subset=metric.stored)
    values = {seed: metric.shown(value) for seed, value in zip(runs["seed"], runs[metric.stored], strict=True)}
    return Cell(values, found.asked, found.failed, found.not_applicable, found.notes)


def reached(frame: Comparison, where: Column, metric: Metric = TOP1) -> list[float]:
    """What the files of a column's teacher reached."""
    return list(cell(frame, "teacher", where, metric).values.values())


def entry(sheet: ResultTable, row: str, column: int | str = 0) -> Any:
    """A cell of a table, by row and heading (its index or text)."""
    place = sheet.columns.index(column) if isinstance(column, str) else column
    (found,) = sheet.cells[(sheet.cells["row"] == row) & (sheet.cells["column"] == place)].itertuples(index=False)
    return found


def seeds_of(sheet: ResultTable, row: str, column: int = 0) -> dict[int, float]:
    """The values of a cell by seed."""
    lines = sheet.values[(sheet.values["row"] == row) & (sheet.values["column"] == column)]
    return dict(zip(lines["seed"], lines["value"], strict=True))
