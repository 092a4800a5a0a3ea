"""``kdtable run --on``: where the runs of a request train."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdtable.errors import BadRequest

if TYPE_CHECKING:
    import torch

    from kdtable.execution.backends.base import Engine
    from kdtable.execution.ranks import ProcessGroup
    from kdtable.planning.cohorts import PlannedRun


def engine_of(
    on: str,
    options: Sequence[str] | None,
    device: str,
    jobs: str,
    process_group: "ProcessGroup | None",
    *,
    detach: bool,
) -> "Engine | None":
    """The engine of a cluster that ``--on`` names; ``None`` for this machine.

    Raises:
        BadRequest: options that do not go together, wrong settings, or the engine cannot be used.
    """
    from kdtable.execution.backends import BACKENDS
    from kdtable.execution.cluster_settings import cluster_settings

    if on == "local":
        given = "--cluster" if options else "--detach" if detach else None
        if given:
            raise BadRequest(f"{given} is for clusters: add --on ray or --on slurm")
        return None
    if detach and on != "slurm":
        raise BadRequest("--detach is for --on slurm: with Ray use 'ray job submit --no-wait -- kdtable run ...'")
    if process_group is not None:
        raise BadRequest(f"--on {on} gives each run one device: leave out --devices and torchrun")
    if jobs != "1":
        raise BadRequest(f"--on {on} says itself how many workers there are: leave out --jobs")
    if device not in ("auto", "cpu", "cuda"):
        raise BadRequest(f"--on {on} takes --device auto, cpu or cuda, not '{device}'")
    engine: Engine = BACKENDS[on](cluster_settings(options or ()), device)
    return engine


def checkpoints_url(given: str | None, on: str, options: Sequence[str] | None) -> str | None:
    """The URL that ``--checkpoints`` names, or on a cluster its settings; ``None`` for the results folder.

    Raises:
        BadRequest: no other process can see it, or settings are wrong.
    """
    from kdtable.execution.cluster_settings import cluster_settings
    from kdtable.files.remote import lasting_url

    named = given or (None if on == "local" else cluster_settings(options or ()).checkpoints)
    return None if named is None else lasting_url(named)


def cluster_device(device: str) -> "torch.device":
    """The kind of device that nodes train on, which this machine may lack."""
    import torch

    return torch.device("cpu" if device == "cpu" else "cuda")


def print_submission(
    planned_runs: "Sequence[PlannedRun]", results: Path, store: str | None, engine: "Engine", *, retrain: bool
) -> None:
    """Print the plan, and what an engine would be given (``--dry-run``)."""
    from rich.console import Console
    from rich.text import Text

    from kdtable.cli.console import duration
    from kdtable.cli.dry_run import print_cohorts
    from kdtable.execution.timings import stored_timings

    left = print_cohorts(planned_runs, results, store, retrain=retrain)
    if left:
        runs = [run for cohort in left for run in cohort.runs]
        timings = stored_timings(results, store, runs)
        known = [seconds for run in runs if (seconds := timings.of(run)) is not None]
        console = Console()
        console.print(Text(f"{engine.plan_words(left, timings)}."))
        if not known:
            console.print(Text("How long that takes is not known: the store has no finished run of these students."))
        else:
            rest = "" if len(known) == len(runs) else f", without {len(runs) - len(known)} runs of other students"
            work = duration(sum(known))
            console.print(Text(f"That is about {work} of work in all, by the store's finished runs{rest}."))
    engine.cancel()
