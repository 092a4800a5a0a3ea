"""``kdtable run --dry-run``: the plan, without training it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.cli.console import print_table
from kdtable.execution.local import known_statuses
from kdtable.plan import Cell, make
from kdtable.runs import TeacherRef


def print_plan(cells: Sequence[Cell], results: Path) -> None:
    """Print which cohorts would train, and what the store has already."""
    statuses = known_statuses(results, {cell.run.id for cell in cells})
    plan = make(cells, statuses)
    console = Console()
    missing = sum(len(cohort.runs) for cohort in plan.cohorts)
    inapplicable = len({cell.run.id for cell in cells if cell.not_applicable})
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
    for cell in {cell.run.id: cell for cell in cells if cell.not_applicable}.values():
        console.print(Text(f"Not applicable: {cell.row} on {cell.pair}, seed {cell.run.seed}: {cell.not_applicable}."))
    absent = {run.teacher.network for run in plan.runs.values() if run.teacher and not _present(run.teacher)}
    if absent:
        console.print(Text(f"Not there yet, so ids will change: teachers {', '.join(sorted(absent))}."))


def _present(teacher: TeacherRef) -> bool:
    return bool(teacher.path.name)


def _named(teacher: TeacherRef) -> str:
    return f"{teacher.network} ({teacher.sha256[:8] if _present(teacher) else 'not there'})"
