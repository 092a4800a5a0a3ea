"""Training cells with a display, and what an interruption says."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from kdtable.cli.progress import GridDisplay
from kdtable.execution.local import execute
from kdtable.plan import Cell
from kdtable.store.address import without_password
from kdtable.training.precision import choose_device


def train(
    cells: Sequence[Cell],
    results: Path,
    device: str,
    data_root: Path,
    store: str | None = None,
    keep: str = "last",
    jobs: str = "1",
) -> int:
    """Train what the store in ``results`` lacks; the number of runs that failed.

    Args:
        cells: the request.
        results: folder of the results.
        device: as the user names it.
        data_root: folder of data sets.
        store: URL of the database, if it is not in ``results``.
        keep: which weights of a finished run stay: "last", "all" or "none".
        jobs: how many worker processes share the work, or "auto".

    Raises:
        typer.Exit: 130, when the user interrupted it; 1, when every worker process was killed.
    """
    try:
        with GridDisplay() as display:
            outcome = execute(
                cells,
                results,
                device=choose_device(device),
                data_root=data_root,
                progress=display,
                url=store,
                keep=keep,
                jobs=jobs,
            )
    except KeyboardInterrupt:
        print(f"\nkdtable: interrupted; {_go_on()}", file=sys.stderr)
        raise typer.Exit(130) from None
    if outcome.unfinished:
        print(f"kdtable: no worker process is left; {_go_on()}", file=sys.stderr)
        raise typer.Exit(1)
    return outcome.failed


def _go_on() -> str:
    command = shlex.join(["kdtable", *map(without_password, sys.argv[1:])])
    return f"finished epochs are kept. Go on with: {command}"
