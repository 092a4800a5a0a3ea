"""``kdtable train-heads``."""

from typing import Annotated

import typer
from rich.table import Table

from kdtable.cli import options as opt
from kdtable.cli.console import print_table, shown

#: The paper that defines heads, recipe and seed; ``kdtable run --paper dih`` reuses the heads trained here.
PAPER = "dih"


def train_heads(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Teachers, such as resnet110 or resnet56_a.")],
    data: opt.Data = None,
    image_size: opt.ImageSize = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    overrides: opt.Set = None,
    teacher: opt.TeacherFiles = None,
    device: opt.Device = "auto",
    jobs: opt.Jobs = "1",
    precision: opt.PrecisionName = "fp32",
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    teachers_dir: opt.Teachers = opt.TEACHERS,
    data_root: opt.DataRoot = opt.DATA_ROOT,
    reading: opt.Reading = "code",
    skip_unreadable: opt.SkipUnreadable = False,
    input_mean: opt.InputMeans = None,
    input_std: opt.InputStds = None,
) -> None:
    """Fine-tune linear classifiers on the stages of frozen teachers, as DIH teaches by, and print their accuracies.

    'kdtable run --paper dih' trains the heads that it needs itself; with the same options it takes these.

    Example: kdtable train-heads resnet110 --data cifar100
    """
    from kdtable.cli.training import train
    from kdtable.papers import load
    from kdtable.planning.request import Changes, DataRequest, Request
    from kdtable.planning.resolve import resolve
    from kdtable.planning.teachers import teacher_finder

    request = Request(
        pairs=[f"{name}:{name}" for name in names],
        methods=["heads"],
        seeds=load(PAPER).seeds[:1],
        paper=PAPER,
        reading=reading,
        data=DataRequest(data, data_root, image_size, skip_unreadable),
        changes=Changes(epochs, batch_size, lr, overrides or []),
        precision=precision,
    )
    planned_runs = resolve(request, teacher_finder(teachers_dir, opt.given_weights(teacher, input_mean, input_std)))
    failed = train(planned_runs, results, device, data_root, store, "last", jobs)
    _print({planned.run.id: planned.pair.teacher for planned in planned_runs}, results, store)
    if failed:
        raise typer.Exit(1)


def _print(runs: dict[str, str], results: opt.Results, store: str | None) -> None:
    from kdtable.recipes.metrics import of_branches
    from kdtable.store import Store

    table = Table("teacher", "run", "heads, shallow to deep (test top-1, %)", "its own classifier")
    for run in Store(results, store, create=False).runs(set(runs)):
        if run.done and (last := run.metrics_of("last")):
            main = run.protocol.main
            heads = ", ".join(f"{main.shown(value):.2f}" for value in of_branches(last, main))
            table.add_row(*map(shown, (runs[run.id], run.id, heads, f"{main.shown(last[main.stored]):.2f}")))
    print_table(table)
