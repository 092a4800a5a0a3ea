"""Options that several commands share."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kdtable import models
from kdtable.cli import completion
from kdtable.errors import BadRequest
from kdtable.escaping import printable

if TYPE_CHECKING:
    from kdtable.data.spec import DataSpec

#: Headings in the help of commands.
WHAT: Final = "What"
RECIPE: Final = "Recipe"
WHERE: Final = "Devices and speed"
FILES: Final = "Files"


def whole(text: str) -> int:
    """Parse an option that takes a whole number."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"takes a whole number, not '{text}'") from None


def number(text: str) -> float:
    """Parse an option that takes a number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"takes a number, not '{text}'") from None


Results = Annotated[
    Path,
    typer.Option(
        "--results",
        metavar="DIR",
        envvar="KDTABLE_RESULTS",
        help="Folder of the results store.",
        rich_help_panel=FILES,
    ),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="KDTABLE_STORE",
        metavar="URL",
        help="Database of the results, postgresql+psycopg://USER@HOST/DATABASE; by default SQLite in their folder.",
        rich_help_panel=FILES,
    ),
]
Keep = Annotated[
    str,
    typer.Option(
        "--keep",
        metavar="WHICH",
        help="Weights of a finished run that stay: last (its student), all (every epoch's too) or none.",
        rich_help_panel=FILES,
    ),
]
Teachers = Annotated[
    Path,
    typer.Option(
        "--teachers-dir",
        metavar="DIR",
        envvar="KDTABLE_TEACHERS",
        help="Folder of fetched and trained teachers.",
        rich_help_panel=FILES,
    ),
]
DataRoot = Annotated[
    Path,
    typer.Option(
        "--data-root",
        metavar="DIR",
        envvar="KDTABLE_DATA",
        help="Folder of CIFAR (downloaded on first use), and of what fetch-data puts there.",
        rich_help_panel=FILES,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        autocompletion=completion.one_of(completion.data_sets),
        help="cifar10, cifar100, tiny-imagenet, digits, npz:PATH, folder:PATH, imagenet:PATH or cub200:PATH; by "
        "default the paper's.",
        rich_help_panel=WHAT,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="N",
        parser=whole,
        help="Pixels that images in folders (imagenet:, cub200:) are cropped to; 224 by default.",
        rich_help_panel=WHAT,
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Leave out images that cannot be read, and say which; without it they are an error.",
        rich_help_panel=WHAT,
    ),
]
TeacherFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        metavar="NAME=FILE",
        help="Weights of a teacher from a file of yours; repeatable.",
        rich_help_panel=WHAT,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=WHERE),
]
Reading = Annotated[
    str,
    typer.Option(
        "--reading",
        metavar="NAME",
        help="Where a paper and its released code differ: code, or paper where the paper's file has such a reading.",
        rich_help_panel=WHAT,
    ),
]
Jobs = Annotated[
    str,
    typer.Option(
        "--jobs",
        metavar="N",
        help="Worker processes that share the work: a number, or auto (one per GPU or last-level CPU cache).",
        rich_help_panel=WHERE,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="LIST",
        help="Train every run on several devices together, each on its shard of every batch: 0,1 (GPUs) or cpu,cpu. "
        "torchrun chooses them too.",
        rich_help_panel=WHERE,
    ),
]
Accumulate = Annotated[
    int,
    typer.Option(
        "--accumulate",
        metavar="N",
        parser=whole,
        help="Sum the gradients of this many parts of a batch that does not fit at once.",
        rich_help_panel=WHERE,
    ),
]
SyncBatchNorm = Annotated[
    bool,
    typer.Option(
        "--sync-batch-norm",
        help="With several GPUs: batch statistics of the images of all, not of each GPU's own.",
        rich_help_panel=WHERE,
    ),
]
PrecisionName = Annotated[
    str,
    typer.Option("--precision", metavar="NAME", help="fp32, tf32, bf16 or fp16.", rich_help_panel=WHERE),
]
CudaGraphs = Annotated[
    str,
    typer.Option(
        "--cuda-graphs",
        metavar="NAME",
        help="on, off or auto: record each step once an epoch and replay it as one launch, which is faster on small "
        "networks; the first replay of each run is checked. auto is off, until it was measured on a GPU.",
        rich_help_panel=WHERE,
    ),
]
TeacherCache = Annotated[
    str,
    typer.Option(
        "--teacher-cache",
        metavar="NAME",
        help="fp32 or fp16: keep the teacher's outputs for each view of each image on disk, beside the teacher.",
        rich_help_panel=WHERE,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        parser=whole,
        help="Epochs of the main stage; milestones, schedules and earlier stages change in proportion.",
        rich_help_panel=RECIPE,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", parser=whole, help="Images per step.", rich_help_panel=RECIPE),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", metavar="X", parser=number, help="Learning rate of every student.", rich_help_panel=RECIPE),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", parser=number, help="How long to wait for a silent server."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a recipe field (weight_decay), a loss weight (weight.at), its course (schedule.at=ramp:20) or a "
        "hyper-parameter (tau), by the names that 'kdtable list methods' shows; repeatable.",
        rich_help_panel=RECIPE,
    ),
]

RESULTS = Path("results")
TEACHERS = Path("teachers")
DATA_ROOT = Path("data")


def print_notes(data: Iterable["DataSpec"]) -> None:
    """Print each data set's notes on stderr, once: images left out, assumptions made."""
    for spec in {spec.key: spec for spec in data}.values():
        for note in spec.notes:
            print(f"kdtable: {printable(f'{spec.name}: {note}')}", file=sys.stderr)


def split(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def teacher_files(texts: list[str] | None) -> dict[str, Path]:
    """Parse NAME=FILE options into files by canonical network name.

    Raises:
        BadRequest: not NAME=FILE, an unknown name, or a missing file.
    """
    found = {}
    for text in texts or []:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise BadRequest(f"--teacher takes NAME=FILE, not '{text}'")
        path = Path(file).expanduser()
        if not path.is_file():
            raise BadRequest(f"--teacher {name}: there is no file {path}")
        found[models.canonical(name)] = path
    return found
