"""Options that several commands share."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtable import models
from kdtable.errors import BadRequest
from kdtable.report.escape import printable

if TYPE_CHECKING:
    from kdtable.data.spec import DataSpec

Results = Annotated[Path, typer.Option("--results", envvar="KDTABLE_RESULTS", help="Folder of the results store.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="KDTABLE_STORE",
        metavar="URL",
        help="Database of the results, postgresql+psycopg://USER@HOST/DATABASE; by default SQLite in their folder.",
    ),
]
Keep = Annotated[
    str,
    typer.Option("--keep", help="Weights of a finished run: last (its student), all (every epoch's too) or none."),
]
Teachers = Annotated[
    Path,
    typer.Option("--teachers-dir", envvar="KDTABLE_TEACHERS", help="Folder of fetched and trained teachers."),
]
DataRoot = Annotated[
    Path,
    typer.Option(
        "--data-root",
        envvar="KDTABLE_DATA",
        help="Folder of CIFAR (downloaded on first use), and of what fetch-data unpacks.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="cifar10, cifar100, tiny-imagenet, digits, npz:PATH, folder:PATH, imagenet:PATH or cub200:PATH; by "
        "default the paper's.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", help="What photographs (imagenet:, cub200:) are cropped to; 224 by default."),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable", help="Leave out photographs that cannot be read, which are told; else they end it."
    ),
]
TeacherFiles = Annotated[
    list[str] | None,
    typer.Option("--teacher", metavar="NAME=FILE", help="Weights of a teacher from a file of yours; repeatable."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Reading = Annotated[
    str,
    typer.Option(
        "--reading",
        help="Where a paper and its released code differ: code, or paper where the paper's file has such a reading.",
    ),
]
Jobs = Annotated[
    str,
    typer.Option(
        "--jobs",
        help="Worker processes that share the work: a number, or auto (one per GPU or last-level CPU cache).",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        help="Train every run on several devices together, each on its share of every batch: 0,1 (GPUs) or cpu,cpu. "
        "torchrun chooses them too.",
    ),
]
Accumulate = Annotated[
    int,
    typer.Option("--accumulate", help="Sum the gradients of this many parts of a batch that does not fit at once."),
]
SyncBatchNorm = Annotated[
    bool,
    typer.Option("--sync-batch-norm", help="With several GPUs: batch statistics of all their images, not of each's."),
]
PrecisionName = Annotated[str, typer.Option("--precision", help="fp32, tf32, bf16 or fp16.")]
TeacherCache = Annotated[
    str,
    typer.Option(
        "--teacher-cache",
        help="fp32 or fp16: keep the teacher's outputs for each view of each image on disk, beside the teacher.",
    ),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Epochs of the main stage; milestones move in proportion.")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images per step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate of every student.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a recipe field (weight_decay), a loss weight (weight.at), its course (schedule.at=ramp:20) or a "
        "hyper-parameter (tau); repeatable.",
    ),
]

RESULTS = Path("results")
TEACHERS = Path("teachers")
DATA_ROOT = Path("data")


def tell_of_skipped(data: Iterable["DataSpec"]) -> None:
    """Say once for each data set which images are left out of it."""
    from kdtable.data.unreadable import note

    for spec in {spec.key: spec for spec in data if spec.skipped}.values():
        print(f"kdtable: {printable(note(spec) or '')}", file=sys.stderr)


def split(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def teacher_files(texts: list[str] | None) -> dict[str, Path]:
    """NAME=FILE options as canonical network name to file.

    Raises:
        BadRequest: not of that form, an unknown name, or no such file.
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
