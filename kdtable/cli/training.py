"""Train planned runs with a display, and report interruptions."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import typer

from kdtable.cli.cluster import cluster_device
from kdtable.cli.progress import GridDisplay
from kdtable.cli.report import planned_text
from kdtable.errors import BadRequest
from kdtable.execution.backends.base import Engine
from kdtable.execution.loggers.base import Logger
from kdtable.execution.loggers.logged import Logged
from kdtable.execution.ranks import ProcessGroup, follow, process_group_of
from kdtable.execution.run_grid import execute
from kdtable.numerics.precision import choose_device
from kdtable.planning.cohorts import PlannedRun
from kdtable.store.address import without_password


def train(
    planned_runs: Sequence[PlannedRun],
    results: Path,
    device: str,
    data_root: Path,
    store: str | None = None,
    keep: str = "last",
    jobs: str = "1",
    process_group: ProcessGroup | None = None,
    cuda_graphs: str = "auto",
    loggers: Mapping[str, Logger] | None = None,
    engine: Engine | None = None,
    *,
    retrain: bool = False,
    detach: bool = False,
    checkpoints: str | None = None,
) -> int:
    """Train the runs that the store lacks; return the number of failed runs.

    Args:
        planned_runs: the resolved request.
        results: folder of the store.
        device: name of the device, as the user gives it.
        data_root: folder of data sets.
        store: URL of the database, if it is not in ``results``.
        keep: which weights of a finished run stay: "last", "all" or "none".
        jobs: number of worker processes, or "auto".
        process_group: ranks that train every run together.
        cuda_graphs: whether steps are recorded as CUDA graphs: "on", "off" or "auto".
        loggers: receive the runs and the table, by name.
        retrain: whether to train again what other code made.
        engine: trains them on a cluster.
        detach: leave them to the engine.
        checkpoints: URL of the folder of checkpoints and students, if they are not in ``results``.

    Raises:
        typer.Exit: 130 if the user interrupted it; 1 if every worker process was killed.
    """
    try:
        with GridDisplay() as display, Logged(display, loggers or {}, planned_runs, results, store) as progress:
            outcome = execute(
                planned_runs,
                results,
                device=choose_device(device) if engine is None else cluster_device(device),
                data_root=data_root,
                progress=progress,
                url=store,
                keep=keep,
                jobs=jobs,
                process_group=process_group,
                cuda_graphs=cuda_graphs,
                retrain=retrain,
                engine=engine,
                detach=detach,
                checkpoints=checkpoints,
            )
            if detach:
                return 0
            progress.table(partial(planned_text, planned_runs, results, store, "markdown"))
    except KeyboardInterrupt:
        print(f"\nkdtable: interrupted; {_go_on()}", file=sys.stderr)
        raise typer.Exit(130) from None
    if outcome.unfinished:
        print(f"kdtable: no worker process is left; {_go_on()}", file=sys.stderr)
        raise typer.Exit(1)
    return outcome.failed


def gather(devices: str | None, device: str, jobs: str, *, sync_batch_norm: bool) -> ProcessGroup | None:
    """The process group, if this process is rank 0; other ranks train here until they are done, and return ``None``.

    Args:
        devices: ``--devices``.
        device: ``--device``.
        jobs: ``--jobs``.
        sync_batch_norm: ``--sync-batch-norm``.

    Raises:
        BadRequest: the options cannot be combined, or a device is missing.
    """
    if devices is not None and device != "auto":
        raise BadRequest("--devices says where to train: leave out --device")
    process_group = process_group_of(devices, device)
    if process_group.size > 1 and jobs != "1":
        raise BadRequest("runs that several devices train together go one after the other: leave out --jobs")
    if sync_batch_norm and process_group.devices[0] == "cpu":
        raise BadRequest("--sync-batch-norm needs GPUs: torch's SyncBatchNorm takes no tensors on a CPU")
    if process_group.rank > 0:
        follow(torch.device(process_group.devices[0]))
        return None
    return process_group


def _go_on() -> str:
    command = shlex.join(["kdtable", *map(without_password, sys.argv[1:])])
    return f"finished epochs are kept. Go on with: {command}"
