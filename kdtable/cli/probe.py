"""``kdtable probe``."""

from contextlib import closing
from typing import Annotated

import typer

from kdtable.cli import options as opt
from kdtable.cli.console import print_line
from kdtable.errors import BadRequest, counted


def probe(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id or the beginning of one, a cell of one run, or its file.")
    ],
    data: opt.Data = None,
    epochs: Annotated[int, typer.Option(metavar="N", help="Epochs of the linear classifier.")] = 100,
    lr: Annotated[float, typer.Option(metavar="X", help="Its learning rate; a tenth after 60 % and 80 %.")] = 1.0,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images per step.")] = 256,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the classifier and the batches.")] = 1,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", help="Scale the images to this size, which the student was trained on.")
    ] = None,
    device: opt.Device = "auto",
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Train a linear classifier on the frozen trunk of a stored student, on any data set.

    Prints its accuracy on the test images, and that of their nearest neighbours. A run's probe of the usual settings on
    CIFAR, STL-10 or Tiny-ImageNet is stored with its result, for --table crd-transfer and --metric probe-stl10.

    Example: kdtable probe 1a2b3c4d --data stl10 --image-size 32
    """
    from kdtable.export.files import named_student, stored_run
    from kdtable.export.probing import probe as probed
    from kdtable.numerics.precision import choose_device
    from kdtable.recipes.metrics import SELF_SUPERVISED
    from kdtable.store import Store

    if data is None:
        raise BadRequest("name what to probe the student on: --data NAME")
    path, chosen = named_student(run, results, store), choose_device(device)
    own = stored_run(run, results, store)
    found = probed(
        path,
        data,
        data_root,
        chosen,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        image_size=image_size,
    )
    last = found.history[-1].metrics
    numbers = [f"{m.words} {m.shown(last[m.stored]):.2f} {m.unit}" for m in SELF_SUPERVISED if m.stored in last]
    print_line(
        f"{found.origin.network} of run {found.origin.run[:8]}, trained on {found.origin.data}: {', '.join(numbers)}, "
        f"on {found.images} test images of {found.data} after {counted(epochs, 'epoch')} (seed {seed}, lr {lr:g})"
    )
    if own is None:
        return
    if why := found.unlike_tables:
        print_line(f"Not stored: {why}.")
    else:
        with closing(Store(results, store)) as opened:
            metric = found.keep(opened, own)
        print_line(f"Stored with run {own.id} as {metric.name}.")
