"""Rows of a store, as `run` writes them, with made-up results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kdtable import papers
from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.execution.run_grid import store_row
from kdtable.papers import Pair, Paper, defaults
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.schedule import Schedule
from kdtable.report.aggregate import comparisons
from kdtable.report.comparison import Column, Comparison

CRD = papers.load("crd")
CIFAR100 = BUILT_IN["cifar100"]
Row = dict[str, Any]


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
    paper: Paper = CRD,
) -> Row:
    """A run as the store gives it: done with ``top1``, or ``status`` without a result."""
    settings = paper.row(row)
    used = None if row == "vanilla" else taught_by or teacher()
    run = Run(
        row,
        student,
        data,
        recipe,
        {**settings.terms, **(terms or {})},
        {**settings.params, **(params or {})},
        seed,
        precision,
        used,
        schedules=schedules or {},
        start=start,
    )
    reached = {"last_top1": top1, "best_top1": top1 if best is None else best}
    reached |= dict.fromkeys(("last_top5", "best_top5"), top1 if top5 is None else top5)
    reached |= dict.fromkeys(("lowest_top1", "lowest_top5"))
    done = {"status": status or "done", "provenance": provenance}
    return (
        store_row(PlannedRun(Pair(used.network if used else "resnet56", student), row, run, paper=paper.name))
        | reached
        | done
    )


def framed(*rows: Row, teachers: tuple[Row, ...] = (), epoch: str = "last") -> list[Comparison]:
    return comparisons(rows, teachers, defaults, epoch)


def only(*rows: Row, **options: Any) -> Comparison:
    (frame,) = framed(*rows, **options)
    return frame


def column(frame: Comparison, student: str = "resnet20") -> Column:
    (found,) = (c for c in frame.columns if c.student == student)
    return found
