"""``kdtable plot``."""

from pathlib import Path
from typing import Annotated

import typer

from kdtable.cli import completion
from kdtable.cli import options as opt
from kdtable.errors import BadRequest


def plot(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="curves (learning curves), gains (over --versus), seeds (each a dot), cost (and the Pareto front), "
            "published (ours against it) or ranks (critical difference); or detections, of RUNs in --data.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A file that ends in .pdf, .svg or .png.")
    ],
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Of detections: ids of runs, or files of students and teachers."),
    ] = None,
    data: opt.Data = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.one_of(completion.tables),
            help="A published table, such as crd-1; by default what was run.",
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(metavar="N", parser=opt.whole, help="Which of the tables that 'kdtable report' prints, from 1."),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these pairs, as the table names them.")
    ] = None,
    methods: Annotated[str | None, typer.Option(metavar="LIST", help="Only these rows (vanilla,kd,crd).")] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to draw; by default the table's metric, else the main one.")
    ] = None,
    epoch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="last, best, lowest-loss or validation (of runs with --validation); by default each table's own.",
        ),
    ] = None,
    versus: Annotated[
        str | None, typer.Option(metavar="ROW", help="The row that others are compared with; kd by default.")
    ] = None,
    cost: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of cost: cpu-seconds (of the run alone, where it trained on a CPU), seconds (beside its cohort), "
            "passes (of the teacher), parameters (of the student) or method-parameters (added in training).",
        ),
    ] = "cpu-seconds",
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Draw a figure for a paper: one column wide (3.3 inches), readable without colour.

    It needs matplotlib (pip install 'kdtable\\[figures]'), and can be called while a grid is running.

    Example: kdtable plot gains -o gains.pdf --table crd-1
    """
    from kdtable.planning.selection import split
    from kdtable.report.asked import Asked
    from kdtable.report.figures.plotted import plot as draw

    if kind == "detections":
        _detections(runs or [], data, output, results, store, data_root)
        return
    if runs or data:
        raise BadRequest("a RUN and --data are for detections alone: choose rows with --methods and --pairs")
    asked = Asked(results, store, table=table, metric=metric, epoch=epoch, versus=versus)
    chosen = [None if names is None else split(names) for names in (pairs, methods)]
    draw(kind, output, asked, pairs=chosen[0], methods=chosen[1], cost=cost, number=number)


def _detections(
    runs: list[str], data: str | None, output: Path, results: Path, store: str | None, data_root: Path
) -> None:
    from kdtable.export.files import titled_student
    from kdtable.report.figures import check_file, save

    check_file(output)
    if not runs or data is None:
        raise BadRequest("name what to draw the detections of, and in which images: RUN ... --data NAME")
    students = [titled_student(run, results, store) for run in runs]

    import torch

    from kdtable.export.detections import picture

    save(lambda: picture(students, data, data_root, torch.device("cpu")), output)
