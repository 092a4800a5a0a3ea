"""``kdtable run --dry-run``: the plan, without training it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.cli.console import print_table, shown
from kdtable.execution.devices import device_slots
from kdtable.execution.estimate import Estimate, estimate
from kdtable.execution.known import known_statuses
from kdtable.numerics import precision
from kdtable.numerics.precision import choose_device
from kdtable.planning.cohorts import PlannedRun, make
from kdtable.planning.run import TeacherRef


def print_plan(planned_runs: Sequence[PlannedRun], results: Path, store: str | None, device: str, jobs: str) -> None:
    """Print which cohorts would train, what the store has already, and how long the rest would take."""
    chosen = choose_device(device)
    precision.choose(planned_runs[0].run.precision, chosen)  # or there is no such run
    statuses = known_statuses(results, {planned.run.id for planned in planned_runs}, store)
    plan = make(planned_runs, statuses)
    at = device_slots(jobs, chosen, len(plan.cohorts))
    console = Console()
    missing = sum(len(cohort.runs) for cohort in plan.cohorts)
    inapplicable = len({planned.run.id for planned in planned_runs if planned.not_applicable})
    console.print(
        f"{len(plan.runs)} runs: {plan.done} done, {missing} to train in {len(plan.cohorts)} cohorts, "
        f"{inapplicable} not applicable"
    )
    table = Table("cohort", "seed", "data", "teacher", "student", "row", "epochs", "run", "status")
    for number, cohort in enumerate(plan.cohorts, start=1):
        for run in cohort.runs:
            teacher = _named(run.teacher) if run.teacher else "none"
            values = (
                number,
                run.seed,
                run.data.key,
                teacher,
                run.student,
                run.row,
                run.recipe.epochs,
                run.id,
            )
            table.add_row(*(Text(str(v)) for v in values), Text(statuses[run.id]))
    if plan.cohorts:
        print_table(table)
    for planned in {planned.run.id: planned for planned in planned_runs if planned.not_applicable}.values():
        console.print(
            shown(
                f"Not applicable: {planned.row} on {planned.pair}, seed {planned.run.seed}: {planned.not_applicable}."
            )
        )
    used = (ref for run in plan.runs.values() for ref in (run.teacher, run.start) if ref)
    absent = {ref.network for ref in used if not ref.present}
    if absent:
        console.print(Text(f"Not there yet, so ids will change: teachers {', '.join(sorted(absent))}."))
    if plan.cohorts:
        console.print(Text(_told(estimate(plan.cohorts, at, chosen), len(at))))


def _told(cost: Estimate, workers: int) -> str:
    where = "this machine" if workers == 1 else f"this machine in {workers} worker processes"
    basis = "one step of each kind of run"
    if cost.timed < cost.kinds:
        basis = f"one step of {cost.timed} of {cost.kinds} kinds of runs, the others counted like their student's first"
    return (
        f"Training this on {where} would take about {duration(cost.seconds)}, if nothing else keeps it busy "
        f"(estimated from {basis})."
    )


def duration(seconds: float) -> str:
    """A time in one unit or two: ``40 s``, ``7 min``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(seconds, 1):.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _named(teacher: TeacherRef) -> str:
    if teacher.made:
        return f"{teacher.network} (run {str(teacher.run)[:8]})"
    return f"{teacher.network} ({teacher.sha256[:8] if teacher.present else 'not there'})"
