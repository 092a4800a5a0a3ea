"""Training cells with a display, and what an interruption says."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from kdtable.cli.progress import GridDisplay
from kdtable.execution.local import execute
from kdtable.plan import Cell
from kdtable.training.precision import choose_device


def train(cells: Sequence[Cell], results: Path, device: str, data_root: Path) -> int:
    """Train what the store in ``results`` lacks; the number of runs that failed.

    Raises:
        typer.Exit: 130, when the user interrupted it.
    """
    try:
        with GridDisplay() as display:
            outcome = execute(cells, results, device=choose_device(device), data_root=data_root, progress=display)
    except KeyboardInterrupt:
        command = shlex.join(["kdtable", *sys.argv[1:]])
        print(f"\nkdtable: interrupted; finished epochs are kept. Go on with: {command}", file=sys.stderr)
        raise typer.Exit(130) from None
    return outcome.failed
