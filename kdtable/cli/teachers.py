"""``kdtable fetch-teachers``, ``check-teachers`` and ``train-teachers``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kdtable.cli import options as opt
from kdtable.cli.console import print_table, shown
from kdtable.errors import BadRequest, counted
from kdtable.escaping import printable

if TYPE_CHECKING:
    from kdtable.execution.check_teachers import Checked
    from kdtable.planning.request import Request

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Teachers, such as resnet56 or cifar10/resnet56_a; by default all."),
]


def fetch_teachers(
    names: Names = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="A folder of teachers, tried before the published sources.")
    ] = None,
    train_missing: Annotated[
        bool, typer.Option("--train-missing", help="Train with the paper's recipe those that no source has.")
    ] = False,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Take teachers over plain http even if no whole checksum of them is published or in checksums.toml.",
        ),
    ] = False,
    timeout: opt.Timeout = 30.0,
    device: opt.Device = "auto",
    teachers_dir: opt.Teachers = opt.TEACHERS,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Download published teachers, verify them, and put them where 'kdtable run' finds them.

    A broken download is continued by the next call, and a damaged file is set aside and fetched again. Files are
    loaded as weights only. timm:NAME and torchvision:NAME get these libraries' pretrained weights, for ImageNet.

    Examples:
        kdtable fetch-teachers resnet56 vgg13
        kdtable fetch-teachers timm:resnet50.a1_in1k
    """
    from kdtable.cli.downloads import downloads
    from kdtable.models.foreign import is_foreign
    from kdtable.models.names import canonical
    from kdtable.planning.request import Request
    from kdtable.teachers import hub
    from kdtable.teachers.manifest import find

    failed: list[str] = []
    names, theirs = names or [], [name for name in names or [] if is_foreign(name)]
    for name in theirs:
        typer.echo(f"{name}: {hub.fetch(canonical(name), teachers_dir)}")
    if theirs == names and names:
        return
    with downloads(teachers_dir, mirror, timeout, allow_unverified=allow_unverified) as fetch:
        for published in find([name for name in names if name not in theirs]):
            try:
                typer.echo(f"{published.name}: {fetch(published)}")
            except BadRequest as error:
                failed.append(published.name)
                print(f"kdtable: {printable(str(error))}", file=sys.stderr)
    if failed and train_missing:
        _train(failed, None, 1, Request((), (), (), paper=""), results, store, teachers_dir, data_root, device)
    elif failed:
        print(f"kdtable: {counted(len(failed), 'teacher')} could not be fetched", file=sys.stderr)
        raise typer.Exit(1)


def check_teachers(
    names: Names = None,
    data: opt.Data = None,
    teacher: opt.TeacherFiles = None,
    device: opt.Device = "auto",
    teachers_dir: opt.Teachers = opt.TEACHERS,
    data_root: opt.DataRoot = opt.DATA_ROOT,
    input_mean: opt.InputMeans = None,
    input_std: opt.InputStds = None,
) -> None:
    """Measure teachers on their test set, beside the accuracy that their paper claims.

    Checks the teachers that are in the folder, or those named by --teacher. NAME+NAME is what several reach together.
    Detectors are measured by their AP.

    Example: kdtable check-teachers --data npz:mine.npz --teacher resnet56_a=resnet56-4bfd9763.th
    """
    from kdtable.execution.check_teachers import check

    refs = check(names or [], data, opt.given_weights(teacher, input_mean, input_std), teachers_dir, data_root, device)
    for metric in dict.fromkeys(r.metric for r in refs):
        print_table(_measured([r for r in refs if r.metric == metric], metric))
    for r in refs:
        if r.shortfall is not None:
            reason = "the file, its input normalisation or the data is not what it seems"
            typer.echo(f"{r.network} falls {r.shortfall:.2f} points short of its claim: {reason}.")
        for note in r.notes:
            print(f"kdtable: {printable(note)}", file=sys.stderr)


def _measured(refs: "Sequence[Checked]", metric: str) -> Table:
    """A table of teachers of one metric."""
    percent = "top-1 %" if metric == "top1" else metric
    claims = "claimed %" if metric == "top1" else "claimed"
    table = Table("teacher", "data", "images", percent, claims, "difference", "SE", "file")
    for r in refs:
        values = (
            r.network,
            r.data,
            r.images,
            f"{r.measured:.2f}",
            "" if r.claimed is None else f"{r.claimed:.2f}",
            "" if r.claimed is None else f"{r.measured - r.claimed:+.2f}",
            "" if r.standard_error is None else f"{r.standard_error:.2f}",
            r.path.name if r.path else "",
        )
        table.add_row(*map(shown, values))
    return table


def train_teachers(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Networks to train, such as resnet20.")],
    data: opt.Data = None,
    image_size: opt.ImageSize = None,
    paper: Annotated[
        str | None,
        opt.recipe(
            metavar="NAME", help="Whose recipe is used; by default that of the paper that published the network."
        ),
    ] = None,
    seed: Annotated[int, opt.recipe(metavar="N", parser=opt.whole, help="Of everything that is random.")] = 1,
    epochs: opt.Epochs = None,
    iterations: opt.Iterations = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    overrides: opt.Set = None,
    device: opt.Device = "auto",
    retrain: opt.Retrain = False,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    teachers_dir: opt.Teachers = opt.TEACHERS,
    data_root: opt.DataRoot = opt.DATA_ROOT,
    skip_unreadable: opt.SkipUnreadable = False,
) -> None:
    """Train teachers from scratch with the paper's recipe, through the same engine and store as any run.

    Example: kdtable train-teachers resnet20 --data digits --epochs 10
    """
    from kdtable.planning.request import Changes, DataRequest, Request

    changes = Request(
        pairs=(),
        methods=(),
        seeds=(),
        paper=paper or "",
        data=DataRequest(None, data_root, image_size, skip_unreadable),
        changes=Changes(epochs, batch_size, lr, overrides or (), iterations=iterations),
    )
    _train(names, data, seed, changes, results, store, teachers_dir, data_root, device, retrain=retrain)


def _train(
    names: list[str],
    data: str | None,
    seed: int,
    changes: "Request",
    results: Path,
    store: str | None,
    teachers_dir: Path,
    data_root: Path,
    device: str,
    *,
    retrain: bool = False,
) -> None:
    from kdtable.cli.training import train
    from kdtable.execution.install_teachers import check_room, install
    from kdtable.planning.given import GivenWeights
    from kdtable.planning.teachers import teacher_finder
    from kdtable.planning.trained_teachers import plan_teachers

    planned_runs = plan_teachers(names, data, seed, changes, teacher_finder(teachers_dir, GivenWeights()))
    opt.print_notes(planned.run.data for planned in planned_runs)
    for note in check_room(planned_runs, teachers_dir):
        print(f"kdtable: {printable(note)}", file=sys.stderr)
    failed = train(planned_runs, results, device, data_root, store, retrain=retrain)
    for path in install(planned_runs, results, teachers_dir, store):
        typer.echo(f"trained: {path}")
    if failed:
        raise typer.Exit(1)
