"""``kdtable run``."""

import sys
from typing import Annotated

import typer

from kdtable.cli import options as opt
from kdtable.errors import BadRequest
from kdtable.papers import DEFAULT_PAPER


def run(
    pairs: Annotated[str, typer.Option(help="all, tables (crd-1), or TEACHER:STUDENT; comma-separated.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Rows such as vanilla,kd,crd (kdtable list methods), or X+kd for X with a KD term; comma-separated."
        ),
    ],
    seeds: Annotated[str, typer.Option(help="A count (3: seeds 1, 2, 3) or a list (7,8,9).")] = "1",
    paper: Annotated[str, typer.Option(help="Whose recipe and settings are used.")] = DEFAULT_PAPER,
    data: opt.Data = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    settings: opt.Set = None,
    teacher: opt.TeacherFiles = None,
    device: opt.Device = "auto",
    precision: opt.PrecisionName = "fp32",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    results: opt.Results = opt.RESULTS,
    teachers_dir: opt.Teachers = opt.TEACHERS,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Train every missing run of a grid of pairs, methods and seeds, and print its table.

    What the store has is not trained again; what was interrupted continues from its last epoch.
    Exit code: 0 all done, 1 some run failed, 2 bad request, 130 interrupted.

    Example: kdtable run --pairs resnet56:resnet20 --methods vanilla,kd,crd --seeds 3
    """
    from kdtable.plan import Request, parse_seeds, resolve
    from kdtable.teachers.find import teacher_finder

    request = Request(
        pairs=opt.split(pairs),
        methods=opt.split(methods),
        seeds=parse_seeds(seeds),
        paper=paper,
        data=data,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        settings=settings or [],
        precision=precision,
    )
    files = opt.teacher_files(teacher)
    cells = resolve(request, teacher_finder(teachers_dir, files, allow_missing=dry_run))
    if strangers := files.keys() - {cell.pair.teacher for cell in cells}:
        raise BadRequest(f"--teacher {min(strangers)} is the teacher of no pair that was asked for")
    if dry_run:
        from kdtable.cli.dry_run import print_plan

        print_plan(cells, results)
        return
    from kdtable.cli.training import train

    failed = train(cells, results, device, data_root)
    from kdtable.cli.report import print_cells

    print_cells(cells, results)
    if failed:
        print(f"kdtable: {failed} runs failed; 'kdtable status' has the reasons", file=sys.stderr)
        raise typer.Exit(1)
