"""``kdtable evaluate``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from kdtable.cli import options as opt
from kdtable.cli.console import print_line, print_table, shown
from kdtable.errors import BadRequest, counted

#: A confusion matrix of more classes is left to the predictions' file.
MOST_CLASSES = 20


def evaluate(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id or the beginning of one, a cell of one run, or its file.")
    ],
    data: opt.Data = None,
    images: Annotated[
        Path | None,
        typer.Option(
            parser=opt.folder, metavar="DIR", help="A folder of images instead, at any depth, without labels."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(parser=opt.folder, metavar="FILE.csv", help="Write each image's predicted class and probability."),
    ] = None,
    device: opt.Device = "auto",
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    data_root: opt.DataRoot = opt.DATA_ROOT,
) -> None:
    """Run a stored student on the test images of a data set, or on a folder of images.

    Prints accuracy, balanced accuracy and confusion matrix; of a folder, how many images were put in which class.

    Example: kdtable evaluate 1a2b3c4d --data npz:mine.npz --predictions mine.csv
    """
    from kdtable.export.files import named_student
    from kdtable.export.predictions import of_images, of_test_set
    from kdtable.numerics.precision import choose_device

    if (data is None) == (images is None):
        raise BadRequest("name what to run the student on: --data NAME or --images DIR")
    path, chosen = named_student(run, results, store), choose_device(device)
    found = of_test_set(path, data, data_root, chosen) if data else of_images(path, images or Path(), chosen)
    if predictions is not None:
        found.write(predictions)
    about = f"{found.origin.network} of run {found.origin.run[:8]}, trained on {found.origin.data}"
    if found.labels is None:
        print_line(f"{about}: {counted(len(found.names), 'image')} of {images}")
        counts = found.predicted.bincount(minlength=found.origin.num_classes).tolist()
        _print("class", ["images"], [[count] for count in counts])
        return
    print_line(
        f"{about}: top-1 accuracy {100 * found.accuracy:.2f} %, balanced {100 * found.balanced_accuracy:.2f} %, on "
        f"{len(found.names)} test images of {data}"
    )
    if found.origin.num_classes <= MOST_CLASSES:
        _print("label", [f"as {c}" for c in range(found.origin.num_classes)], found.confusion().tolist())


def _print(what: str, columns: list[str], rows: list[list[int]]) -> None:
    table = Table(what, *columns)
    for name, row in enumerate(rows):
        table.add_row(*(shown(value) for value in (name, *row)))
    print_table(table)
