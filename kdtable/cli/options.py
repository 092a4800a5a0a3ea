"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from kdtable import models
from kdtable.errors import BadRequest

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
        "--data-root", envvar="KDTABLE_DATA", help="Folder of CIFAR (downloaded on first use) and Tiny-ImageNet."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", help="cifar10, cifar100, tiny-imagenet, digits, npz:PATH or folder:PATH; by default the paper's."
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
        help="Change a recipe field (weight_decay), a loss weight (weight.at) or a hyper-parameter (tau); repeatable.",
    ),
]

RESULTS = Path("results")
TEACHERS = Path("teachers")
DATA_ROOT = Path("data")


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
