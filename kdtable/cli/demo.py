"""``kdtable demo``."""

import shlex
from pathlib import Path
from typing import Annotated, Final

import typer

from kdtable.cli import options as opt

PAIR: Final = "resnet14:resnet8"
#: What to type when the table is there, with the folder of results filled in.
NEXT: Final = """
Next:
  kdtable show digits-few-{size}:kd:{pair} --results {results}    # the runs behind a number
  kdtable report --format html -o report.html --results {results}    # a page with every seed and curve
  kdtable run --pairs {pair} --methods fitnet --seeds 3 --epochs {epochs} --batch-size {batch} --data digits-few \\
      --image-size {size} --set {setting} --teacher resnet14={teacher} --results {results} \\
      --device cpu    # one row more
  kdtable list methods    # all that can stand in a table"""
ROWS: Final = "vanilla,kd"
SEEDS: Final = "3"
TEACHER_EPOCHS: Final = 6
EPOCHS: Final = 40
BATCH: Final = 20
#: The digits have 8 x 8 pixels: at twice their size everything costs a quarter of what it does at 32.
SIZE: Final = 16
#: The recipe moves images of 32 pixels by up to 4.
SETTING: Final = "crop_padding=2"
DETECTORS: Final = "retinanet_w16:retinanet_w8"
DETECTOR_ROWS: Final = "vanilla,fitnet,reviewkd"
DETECTOR_SEEDS: Final = "2"
#: The recipe's.
DETECTOR_TEACHER_EPOCHS: Final = 8
DETECTOR_EPOCHS: Final = 4
#: What to type when the table of detectors is there.
NEXT_DETECTORS: Final = """
Next:
  kdtable show shapes:{row}:{pair} --results {results}    # the runs behind a number
  kdtable plot detections {teacher} RUN --data shapes -o detections.png --results {results}    # what RUN finds
  kdtable list methods --paper detection    # all that can stand in such a table"""


def demo(
    place: Annotated[
        Path, typer.Argument(metavar="DIR", parser=opt.folder, help="Folder of its teacher and results.")
    ] = Path("demo"),
    detection: Annotated[
        bool, typer.Option("--detection", help="Train detectors on generated images with boxes instead.")
    ] = False,
) -> None:
    """Train students on ten images of each digit, with and without a teacher that has seen them all.

    The teacher is trained first, on the 1,348 training images. All data are embedded, and a CPU is enough; a repeated
    call trains nothing that is there.

    Example: kdtable demo
    """
    if detection:
        _detection(place)
        return
    from kdtable.cli.run import run
    from kdtable.cli.teachers import train_teachers

    results, teachers = place / "results", place / "teachers"
    network = PAIR.partition(":")[0]
    file = teachers / f"digits-{SIZE}" / f"{network}.safetensors"
    train_teachers(
        [network],
        "digits",
        image_size=SIZE,
        epochs=TEACHER_EPOCHS,
        overrides=[SETTING],
        device="cpu",
        results=results,
        teachers_dir=teachers,
    )
    run(
        PAIR,
        ROWS,
        SEEDS,
        data="digits-few",
        image_size=SIZE,
        overrides=[SETTING],
        teacher=[f"{network}={file}"],
        epochs=EPOCHS,
        batch_size=BATCH,
        device="cpu",
        results=results,
    )
    paths = {"results": shlex.quote(str(results)), "teacher": shlex.quote(str(file))}
    recipe = {"epochs": EPOCHS, "batch": BATCH, "size": SIZE, "setting": SETTING}
    typer.echo(NEXT.format(pair=PAIR, **recipe, **paths))


def _detection(place: Path) -> None:
    from kdtable.cli.run import run
    from kdtable.cli.teachers import train_teachers

    results, teachers = place / "results", place / "teachers"
    network = DETECTORS.partition(":")[0]
    epochs = DETECTOR_TEACHER_EPOCHS
    train_teachers([network], "shapes", epochs=epochs, device="cpu", results=results, teachers_dir=teachers)
    run(
        DETECTORS,
        DETECTOR_ROWS,
        DETECTOR_SEEDS,
        data="shapes",
        epochs=DETECTOR_EPOCHS,
        device="cpu",
        results=results,
        teachers_dir=teachers,
    )
    file = teachers / "shapes" / f"{network}.safetensors"
    paths = {"results": shlex.quote(str(results)), "teacher": shlex.quote(str(file))}
    typer.echo(NEXT_DETECTORS.format(pair=DETECTORS, row=DETECTOR_ROWS.rpartition(",")[2], **paths))
