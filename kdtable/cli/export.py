"""``kdtable export``."""

from pathlib import Path
from typing import Annotated

import typer

from kdtable.cli import options as opt
from kdtable.cli.console import print_line


def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id or the beginning of one, or a cell of one run.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="FILE.safetensors, FILE.pt or FILE.onnx.")
    ],
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
) -> None:
    """Write a run's student to a file for use elsewhere, and a model card beside it (FILE.md).

    safetensors and pt hold the weights by name; onnx the whole network, its input normalisation included, with
    logits as its only output (pip install 'kdtable\\[onnx]'). docs/using-a-student.md shows how each is loaded.

    Example: kdtable export 1a2b3c4d -o student.onnx
    """
    from kdtable.export.files import export, one_run
    from kdtable.store import Store

    opened = Store(results, store, create=False)
    found = one_run(opened, run)
    card = export(opened, found, output)
    print_line(f"{output}: the student of run {found.id}; {card} describes it")
