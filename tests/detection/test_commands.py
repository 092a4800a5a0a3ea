"""Detection as a user types it: a set of their own, a teacher trained on it, students, tables."""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdtable.cli import main
from kdtable.data.detection import shapes
from kdtable.export.files import titled_student
from kdtable.store import Store
from tests.cli.command import FOREIGN, Done, last_of_each

PAIR = "retinanet_w16:retinanet_w8"
RUN = ("run", "--data", "coco:shapes", "--pairs", PAIR, "--epochs", "2", "--device", "cpu")


def write_shapes(root: Path, train: int = 12, test: int = 8) -> None:
    """Some of the generated images in COCO's layout, with category ids 10, 20 and 30."""
    categories = [{"id": 10 * number, "name": name} for number, name in enumerate(shapes.CLASSES, start=1)]
    for part, source, count in (("train", "train", train), ("val", "test", test)):
        images, known = shapes.read(source, count)
        (root / part).mkdir(parents=True)
        annotations = []
        for number, (pixels, one) in enumerate(zip(images, known, strict=True)):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(root / part / f"{number}.png")
            for (left, top, right, bottom), label in zip(one.boxes.tolist(), one.labels.tolist(), strict=True):
                box = [left, top, right - left, bottom - top]
                where = {"id": len(annotations), "image_id": number, "category_id": 10 * label + 10}
                annotations.append({**where, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        named = [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in range(count)]
        content = {"images": named, "annotations": annotations, "categories": categories}
        (root / f"instances_{part}.json").write_text(json.dumps(content))


class Commands:
    """Calls commands in a folder that holds a set, a teacher and a store."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        patch.chdir(folder)
        for name in FOREIGN:
            patch.delenv(name, raising=False)

    def __call__(self, *args: str) -> Done:
        self._patch.setattr(sys, "argv", ["kdtable", *last_of_each(args)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("detection")
        write_shapes(folder / "shapes")
        yield Commands(folder, patch)


@pytest.fixture(scope="module")
def trained(commands: Commands) -> Done:
    teacher = commands("train-teachers", "retinanet_w16", "--data", "coco:shapes", "--epochs", "1", "--device", "cpu")
    assert teacher.code == 0, teacher.err
    return commands(*RUN, "--methods", "vanilla,fitnet", "--seeds", "2")


def lines(done: Done) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.out)))


def test_status_names_the_metric_of_detectors(commands: Commands) -> None:
    failed = commands(*RUN, "--methods", "vanilla", "--seeds", "1", "--lr", "1e30", "--results", "failed")
    assert failed.code == 1, failed.err
    status = commands("status", "--results", "failed")
    assert "1 failed" in status.out
    assert "last AP" in status.out


def test_a_grid_ends_in_a_table_of_six_numbers(trained: Done, commands: Commands) -> None:
    assert trained.code == 0, trained.err
    found = lines(commands("report", "--format", "csv"))
    # There are no large objects here, and so no column for them.
    assert {"AP", "AP50", "AP75", "APs"} <= {line["metric"] for line in found} <= {"AP", "AP50", "AP75", "APs", "APm"}
    measured = {(line["row"], line["seed"]): line for line in found if line["metric"] == "AP50"}
    assert {("student", "1"), ("fitnet", "2")} <= measured.keys()
    with contextlib.closing(Store(Path("results"), create=False)) as store:
        (run,) = [one for one in store.runs() if one.row == "fitnet" and one.seed == 2]
        metrics = store.history(run.id)[-1].metrics
    assert float(measured["fitnet", "2"]["value"]) == pytest.approx(100 * metrics["AP50"])
    assert {"train-class", "train-box", "train-positives", "AR100"} <= metrics.keys()


def test_the_teachers_own_numbers_stand_above(trained: Done, commands: Commands) -> None:
    assert trained.code == 0
    table = commands("report", "--format", "markdown").out
    (heading,) = [
        line for line in table.splitlines() if line.startswith("|") and "AP75" in line and "fitnet" not in line
    ][-1:]
    teacher = [line for line in table.splitlines() if line.startswith("| teacher")][-1]
    assert heading.count("|") == teacher.count("|")
    assert "—" not in teacher


def test_teachers_are_measured_by_their_own_metric(trained: Done, commands: Commands) -> None:
    done = commands("check-teachers", "--data", "coco:shapes", "--device", "cpu")
    assert done.code == 0, done.err
    heading, line = (one.split("│") for one in done.out.splitlines() if "│" in one or "┃" in one)
    with contextlib.closing(Store(Path("results"), create=False)) as store:
        (run,) = [one for one in store.runs() if one.student == "retinanet_w16"]
        reached = 100 * store.history(run.id)[-1].metrics["AP"]
    assert "AP" in "".join(heading)
    assert "top-1" not in done.out
    assert [cell.strip() for cell in line[1:8]] == ["retinanet_w16", "shapes", "8", f"{reached:.2f}", "", "", ""]


def test_a_teacher_for_another_task_is_one_sentence(commands: Commands) -> None:
    (commands.folder / "nothing.safetensors").touch()
    done = commands("check-teachers", "--teacher", "retinanet_w16=nothing.safetensors", "--device", "cpu")
    assert done.code == 2
    assert "retinanet_w16 is a network for detection, and data set cifar100 for classification" in done.err


def test_asking_again_trains_nothing(trained: Done, commands: Commands) -> None:
    again = commands(*RUN, "--methods", "vanilla,fitnet", "--seeds", "2")
    assert again.code == 0
    assert "epoch" not in again.err


def test_steps_say_how_long_a_run_is(trained: Done, commands: Commands) -> None:
    """12 images in batches of 4: 5 steps are two epochs."""
    words = list(RUN)
    words[words.index("--epochs")] = "--iterations"
    words[words.index("2")] = "5"
    shown = commands(*words, "--methods", "vanilla", "--seeds", "1", "--dry-run")
    assert shown.code == 0
    assert "cannot be trained" not in shown.out + shown.err


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "method": (("--methods", "crd"), "method 'crd' is not one of detection"),
    "network": (("--methods", "kd", "--pairs", "resnet20:resnet8"), "resnet20 is a network for classification"),
    "paper": (("--methods", "kd", "--paper", "crd"), "paper crd is for classification"),
    "both lengths": (("--methods", "kd", "--iterations", "3"), "--epochs and --iterations both say"),
    "no folder": (("--methods", "kd", "--data", "coco:nothing"), "no such folder"),
    "no path": (("--methods", "kd", "--data", "coco"), "data set 'coco'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(name: str, commands: Commands) -> None:
    words, expected = BAD[name]
    refused = commands(*RUN, "--seeds", "1", *words)
    assert refused.code == 2
    assert expected in refused.err.replace("\n", " ")
    assert refused.err.count("kdtable:") == 1


def test_detectors_are_not_for_classes(commands: Commands) -> None:
    options: tuple[Any, ...] = ("--data", "digits", "--seeds", "1")
    refused = commands("run", *options, "--pairs", PAIR, "--methods", "kd")
    assert (refused.code, "retinanet_w16 is a network for detection" in refused.err) == (2, True)
    refused = commands("run", *options, "--pairs", "resnet20:resnet8", "--methods", "fgfi")
    assert (refused.code, "method 'fgfi' is for detectors" in refused.err) == (2, True)


def test_a_picture_of_detections(trained: Done, commands: Commands) -> None:
    """What is there, the teacher and a student: a column each, of six images."""
    assert trained.code == 0
    with contextlib.closing(Store(Path("results"), create=False)) as store:
        (run,) = [one for one in store.runs() if one.row == "fitnet" and one.seed == 2]
    (teacher,) = Path("teachers").rglob("retinanet_w16.safetensors")
    drawn = commands("plot", "detections", str(teacher), run.id, "--data", "coco:shapes", "-o", "found.png")
    assert drawn.code == 0, drawn.err
    with Image.open("found.png") as image:
        assert image.height > 1.5 * image.width
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24) or []}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours  # the frames of rectangles and ellipses
    assert [title for _, title in map(titled, (str(teacher), run.id))] == ["", "fitnet, seed 2"]


def titled(student: str) -> tuple[Path, str]:
    return titled_student(student, Path("results"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("detections", "--data", "coco:shapes"), "name what to draw the detections of"),
        (("detections", "nothing"), "name what to draw the detections of"),
        (("gains", "1a2b3c4d"), "are for detections alone"),
    ],
)
def test_what_a_picture_needs(words: tuple[str, ...], expected: str, commands: Commands) -> None:
    refused = commands("plot", *words, "-o", "x.png")
    assert (refused.code, expected in refused.err) == (2, True)
