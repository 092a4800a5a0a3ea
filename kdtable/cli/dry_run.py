"""``kdtable run --dry-run``: the plan, without training it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdtable.cli.console import duration, print_table, shown
from kdtable.errors import counted
from kdtable.execution.devices import device_slots, records_steps
from kdtable.execution.estimate import Estimate, estimate
from kdtable.execution.known import known_runs
from kdtable.execution.stale import plan_renewals
from kdtable.numerics import precision
from kdtable.numerics.precision import choose_device
from kdtable.planning.cohorts import CohortPlan, PlannedRun, cohorts, missing
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import MissingTeacher, NetworkRef, RunTeacher, TeacherRef, single_refs


def print_plan(
    planned_runs: Sequence[PlannedRun],
    results: Path,
    store: str | None,
    device: str,
    jobs: str,
    cuda_graphs: str = "auto",
    *,
    retrain: bool = False,
) -> bool:
    """Print which cohorts would train, what the store has already, and how long the rest would take.

    With ``retrain``, runs that other code made count as to be trained. Returns whether all of them can be trained here.
    """
    chosen = choose_device(device)
    precision.choose(planned_runs[0].run.precision, chosen)  # raises if the device lacks the precision
    recorded = records_steps(cuda_graphs, planned_runs[0].run.precision, chosen, planned_runs[0].run.sharding.devices)
    device_slots(jobs, chosen, len(planned_runs))  # raises if there cannot be so many workers
    left = print_cohorts(planned_runs, results, store, retrain=retrain)
    if not left:
        return True
    slots = device_slots(jobs, chosen, len(left))
    cost = estimate(left, slots, chosen, cuda_graphs=recorded)
    console = Console()
    for (row, (student, *_), teacher), reason in cost.failures.items():
        console.print(Text(f"{row} on {teacher or 'no teacher'}:{student} cannot be trained: {reason}."))
    console.print(Text(_estimate_words(cost, len(slots))))
    return not cost.failures


def print_cohorts(
    planned_runs: Sequence[PlannedRun], results: Path, store: str | None, *, retrain: bool = False
) -> list[CohortPlan]:
    """Print the plan, as in :func:`print_plan`; return the cohorts that are left to train."""
    runs = {planned.run.id: planned.run for planned in planned_runs}
    trained = {planned.run.id: planned.run for planned in planned_runs if planned.not_applicable is None}
    stored = known_runs(results, runs, store)
    notes: list[str] = []
    renewals = plan_renewals(trained, stored, results, store, notes.append, retrain=retrain)
    statuses = dict.fromkeys(runs, "missing") | {run.id: run.status for run in stored}
    statuses |= {run: "other code" for run, one in renewals.items() if one.back is None}
    left = cohorts(missing(planned_runs, statuses))
    inapplicable = {planned.run.id: planned for planned in planned_runs if planned.not_applicable}
    done = sum(status == "done" for status in statuses.values())
    console = Console()
    console.print(
        f"{counted(len(runs), 'run')}: {done} done, {sum(len(cohort.runs) for cohort in left)} to train in "
        f"{counted(len(left), 'cohort')}, "
        f"{len(inapplicable)} not applicable"
    )
    for note in notes:
        console.print(shown(f"{note}."))
    if left:
        print_table(_table(left, statuses))
    for planned in inapplicable.values():
        what = f"{planned.row} on {planned.pair}, seed {planned.run.seed}"
        console.print(shown(f"Not applicable: {what}: {planned.not_applicable}."))
    if absent := _absent(runs.values()):
        console.print(Text(f"Not there yet, so ids will change: teachers {', '.join(sorted(absent))}."))
    return left


def _table(left: Sequence[CohortPlan], statuses: Mapping[str, str]) -> Table:
    """The cohorts' runs, one per row."""
    table = Table("cohort", "seed", "data", "teacher", "student", "row", "epochs", "run", "status")
    for number, cohort in enumerate(left, start=1):
        for run in cohort.runs:
            what = (run.data.key, _teacher_words(run.teacher), run.student, run.row)
            values = (number, run.seed, *what, run.recipe.epochs, run.id, statuses[run.id])
            table.add_row(*(Text(str(value)) for value in values))
    return table


def _absent(runs: Iterable[Run]) -> set[str]:
    """Networks with missing weights that runs learn from or start from."""
    used = (ref for run in runs for ref in (*single_refs(run.teacher), run.start))
    return {ref.network for ref in used if isinstance(ref, MissingTeacher)}


def _estimate_words(cost: Estimate, workers: int) -> str:
    where = "this machine" if workers == 1 else f"this machine in {workers} worker processes"
    basis = "one step of each kind of run"
    if cost.timed < cost.kinds:
        basis = f"one step of {cost.timed} of {cost.kinds} kinds of runs, the others counted like their student's first"
    return (
        f"Training this on {where} would take about {duration(cost.seconds)}, if nothing else keeps it busy "
        f"(estimated from {basis})."
    )


def _teacher_words(teacher: TeacherRef | None) -> str:
    if teacher is None:
        return "none"
    return f"{teacher.network} ({', '.join(map(_origin, single_refs(teacher)))})"


def _origin(ref: NetworkRef) -> str:
    if isinstance(ref, RunTeacher):
        return f"run {ref.run[:8]}"
    return "not there" if isinstance(ref, MissingTeacher) else ref.sha256[:8]
