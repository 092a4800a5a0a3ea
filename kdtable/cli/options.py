"""Options that several commands share."""

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdtable.cli import completion
from kdtable.errors import BadRequest
from kdtable.escaping import printable

if TYPE_CHECKING:
    from kdtable.data.spec import DataSpec
    from kdtable.planning.given import GivenWeights


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


def folder(text: str | Path) -> Path:
    """Parse an option that takes a folder; the shell does not expand ``~`` behind ``=`` or in a variable."""
    return Path(text).expanduser()


#: Options under the headings of commands' help.
what = partial(typer.Option, rich_help_panel="What")
recipe = partial(typer.Option, rich_help_panel="Recipe")
where = partial(typer.Option, rich_help_panel="Devices and speed")
advanced = partial(typer.Option, rich_help_panel="Advanced")
files = partial(typer.Option, rich_help_panel="Files")
folders = partial(files, metavar="DIR", parser=folder)

# An option has the name of its parameter, unless it is named here.
Results = Annotated[Path, folders(envvar="KDTABLE_RESULTS", help="Folder of the results store.")]
StoreUrl = Annotated[
    str | None,
    files(
        envvar="KDTABLE_STORE",
        metavar="URL",
        help="Database of the results, postgresql+psycopg://USER@HOST/DATABASE; by default SQLite in their folder.",
    ),
]
Plugins = Annotated[
    list[str] | None,
    files(
        "--plugin",
        metavar="FILE",
        help="A file with methods, networks, data sets or papers of yours; repeatable. Those that kdtable.toml names "
        "are loaded by every command.",
    ),
]
Keep = Annotated[
    Literal["last", "all", "none"],
    files(help="Weights of a finished run that stay: last (its student), all (every epoch's too) or none."),
]
Retrain = Annotated[
    bool,
    files(
        "--retrain",
        help="Train again the runs whose method, networks or step have other code by now; their older results stay.",
    ),
]
Log = Annotated[
    str | None,
    files(
        metavar="LIST",
        autocompletion=completion.last_of_list(completion.loggers),
        help="Log every epoch and the table in RESULTS/logs too: tensorboard, wandb, mlflow; comma-separated.",
    ),
]
Teachers = Annotated[Path, folders(envvar="KDTABLE_TEACHERS", help="Folder of fetched and trained teachers.")]
DataRoot = Annotated[
    Path,
    folders(
        envvar="KDTABLE_DATA",
        help="Folder of CIFAR (downloaded on first use), and of what fetch-data puts there.",
    ),
]
Data = Annotated[
    str | None,
    what(
        metavar="NAME",
        autocompletion=completion.one_of(completion.data_sets),
        help="cifar10, cifar100, stl10, tiny-imagenet, digits, digits-few (ten of each), npz:PATH, folder:PATH, "
        "hf:NAME, imagenet:PATH or cub200:PATH; shapes, coco:PATH or voc:PATH for detection; by default the paper's.",
    ),
]
ImageSize = Annotated[
    int | None,
    what(
        metavar="N",
        parser=whole,
        help="Pixels that images are cropped to: of imagenet: and cub200: (224 by default), or of folder: and hf: with "
        "several sizes; of digits 32 or 16.",
    ),
]
Validation = Annotated[
    int | None,
    what(
        metavar="N",
        parser=whole,
        help="Hold out N training images to choose the epoch by, and measure the test images once, with its weights.",
    ),
]
SkipUnreadable = Annotated[
    bool,
    advanced("--skip-unreadable", help="Leave out images that cannot be read, and say which; else they are an error."),
]
TeacherFiles = Annotated[
    list[str] | None, what(metavar="NAME=FILE", help="Weights of a teacher from a file of yours; repeatable.")
]
Starts = Annotated[
    list[str] | None,
    what("--start", metavar="NAME=FILE", help="Weights that a student starts from; repeatable."),
]
InputMeans = Annotated[
    list[str] | None,
    advanced(
        "--input-mean",
        metavar="NAME=R,G,B",
        help="Mean of the inputs that a file of --teacher or --start was trained with, for pixels in [0, 1]; by "
        "default what the file says, else the data set's. With --input-std.",
    ),
]
InputStds = Annotated[
    list[str] | None, advanced("--input-std", metavar="NAME=R,G,B", help="Standard deviation of the same.")
]
Device = Annotated[str, where(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Reading = Annotated[
    str,
    advanced(
        metavar="NAME",
        help="Where a paper and its released code differ: code, or paper where the paper's file has such a reading.",
    ),
]
Jobs = Annotated[
    str,
    where(
        metavar="N",
        help="Worker processes that share the work: a number, or auto (one per GPU or last-level CPU cache).",
    ),
]
Devices = Annotated[
    str | None,
    where(
        metavar="LIST",
        help="Train every run on several devices together, each on its shard of every batch: 0,1 (GPUs) or cpu,cpu. "
        "torchrun chooses them too.",
    ),
]
Accumulate = Annotated[
    int,
    advanced(
        metavar="N", parser=whole, help="Sum the gradients of this many parts of a batch that does not fit at once."
    ),
]
SyncBatchNorm = Annotated[
    bool,
    advanced(
        "--sync-batch-norm",
        help="With several GPUs: batch statistics of the images of all, not of each GPU's own.",
    ),
]
On = Annotated[
    Literal["local", "ray", "slurm"],
    where(help="Train on this machine, on a Ray cluster, or as arrays of Slurm jobs (docs: how-to/cluster)."),
]
Cluster = Annotated[
    list[str] | None,
    where(
        "--cluster",
        metavar="KEY=VALUE",
        help="A setting of clusters, over kdtable.toml: per_gpu=4, ray.address=HOST:PORT, slurm.partition=NAME; "
        "repeatable.",
    ),
]
Detach = Annotated[
    bool,
    where("--detach", help="With --on slurm: submit all and return; 'kdtable status --watch' shows how it goes."),
]
PrecisionName = Annotated[str, where(metavar="NAME", help="fp32, tf32, bf16 or fp16.")]
Checkpoints = Annotated[
    str | None,
    files(
        "--checkpoints",
        metavar="URL",
        help="Where checkpoints and students go: a path, s3://BUCKET/NAME or gs://...; by default --results.",
    ),
]
CudaGraphs = Annotated[
    Literal["auto", "on", "off"],
    advanced(
        help="Record each step once an epoch and replay it as one launch, which is faster on small networks; the first "
        "replay of each run is checked. auto is off, until it was measured on a GPU.",
    ),
]
TeacherCache = Annotated[
    str,
    advanced(
        metavar="NAME",
        help="fp32 or fp16: keep the teacher's outputs for each view of each image on disk, beside the teacher.",
    ),
]
Epochs = Annotated[
    int | None,
    recipe(
        metavar="N",
        parser=whole,
        help="Epochs of the main stage; milestones, schedules and earlier stages change in proportion.",
    ),
]
Iterations = Annotated[
    int | None,
    recipe(
        metavar="N",
        parser=whole,
        help="Steps of the main stage instead of epochs; milestones and warm-up change in proportion.",
    ),
]
BatchSize = Annotated[int | None, recipe(metavar="N", parser=whole, help="Images per step.")]
LearningRate = Annotated[float | None, recipe(metavar="X", parser=number, help="Learning rate of every student.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", parser=number, help="How long to wait for a silent server.")]
Set = Annotated[
    list[str] | None,
    recipe(
        "--set",
        metavar="KEY=VALUE",
        help="Change a recipe field (weight_decay), a loss weight (weight.at), its course (schedule.at=ramp:20) or a "
        "hyper-parameter (tau), by the names that 'kdtable list methods' shows; for one pair PAIR/KEY=VALUE; "
        "repeatable.",
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


def given_weights(
    teachers: list[str] | None,
    means: list[str] | None,
    stds: list[str] | None,
    starts: list[str] | None = None,
) -> "GivenWeights":
    """Parse options of the form NAME=VALUE into the files of weights that the user names.

    Raises:
        BadRequest: not of that form, an unknown name, a missing file, or constants that are none.
    """
    from kdtable.planning.given import given_weights as checked

    return checked(
        _named("--teacher", "FILE", teachers),
        _named("--start", "FILE", starts),
        _named("--input-mean", "R,G,B", means),
        _named("--input-std", "R,G,B", stds),
    )


def _named(option: str, what: str, texts: list[str] | None) -> list[tuple[str, str]]:
    named = []
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise BadRequest(f"{option} takes NAME={what}, not '{text}'")
        named.append((name, value))
    return named
