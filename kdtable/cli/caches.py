"""Print a grid's teacher caches and their size before they are used."""

from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from rich.filesize import decimal

from kdtable.execution.known import known_statuses
from kdtable.execution.teacher_caches import (
    TeacherCache,
    caches_of,
    check_room,
    free_bytes,
)
from kdtable.planning.cohorts import PlannedRun, cohorts, missing, why_uncached
from kdtable.planning.teacher_refs import FileTeacher


def show_caches(
    planned_runs: Sequence[PlannedRun], results: Path, store: str | None, device: torch.device, *, err: bool
) -> None:
    """Print which missing rows use a cache, and its size, on stdout or stderr.

    Raises:
        BadRequest: a cache cannot be used, or its missing rows do not fit on the disk.
    """
    statuses = known_statuses(results, {planned.run.id for planned in planned_runs}, store)
    left = cohorts(missing(planned_runs, statuses))
    if not left:
        return
    caches = caches_of(left, device)
    reasons = {run.row: why_uncached(run) for cohort in left for run in cohort.runs}
    users = [row for row, reason in reasons.items() if reason is None]
    others = [f"{row} ({reason})" for row, reason in reasons.items() if reason is not None]
    typer.echo(f"teacher cache: used by {_listed(users)}; not by {_listed(others)}", err=err)
    for cache in caches:
        typer.echo(f"teacher cache: {_size(cache)}", err=err)
    check_room([cache for cache in caches if isinstance(cache.teacher, FileTeacher)])


def _size(cache: TeacherCache) -> str:
    what = f"{' and '.join(cache.widths)} of {cache.teacher.network} for {cache.rows:,} views, {cache.held}"
    full = f"{decimal(cache.full_bytes)} when full"
    if not isinstance(cache.teacher, FileTeacher):
        return f"{what}: {full}; the teacher is not there yet"
    filled = ", ".join(f"{cache.filled(part) / cache.rows:.1%} of {part}" for part in cache.widths)
    free = decimal(free_bytes(cache.folder))
    return f"{what}: {full}, {decimal(cache.disk_bytes)} now ({filled} there), {free} free in {cache.folder}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"
