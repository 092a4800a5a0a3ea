"""``kdtable evaluate``: a stored student on a test set, and on a folder of images."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from kdtable.store import Store
from tests.cli.command import Call, assert_refused, write_images
from tests.cli.test_export import run_of


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_accuracy_is_the_runs_own(after_grid: Path, call: Call) -> None:
    run = run_of(after_grid)
    done = call("evaluate", run[:8], "--data", "npz:tiny.npz", "--predictions", "p.csv")
    assert (done.code, done.err) == (0, "")
    lines = _lines(after_grid / "p.csv")
    hits = [line["label"] == line["predicted"] for line in lines]
    (stored,) = Store(after_grid / "results").runs([run])
    measured = stored.metrics_of("last")
    assert measured is not None
    assert np.mean(hits) == measured["top1"]
    assert f"top-1 accuracy {100 * measured['top1']:.2f} %, balanced {100 * measured['balanced']:.2f} %" in done.out


def test_a_file_and_other_data(after_grid: Path, call: Call) -> None:
    write_images(after_grid / "other.npz", test=12)
    path = f"results/runs/{run_of(after_grid)}/student.safetensors"
    done = call("evaluate", path, "--data", "npz:other.npz")
    assert done.code == 0, done.err
    assert "on 12 test images of npz:other.npz" in done.out


def test_a_folder_of_images(after_grid: Path, call: Call) -> None:
    folder = after_grid / "pictures" / "deep"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.fromarray(np.full((64, 48, 3), 40 * number, np.uint8)).save(folder / f"{number}.PNG")
    done = call("evaluate", run_of(after_grid), "--images", "pictures", "--predictions", "p.csv")
    assert (done.code, done.err) == (0, "")
    assert "5 images of pictures" in done.out
    lines = _lines(after_grid / "p.csv")
    assert [line["image"] for line in lines] == [f"deep/{number}.PNG" for number in range(5)]
    assert set(lines[0]) == {"image", "predicted", "probability"}


def test_images_are_seen_upright_and_over_black(after_grid: Path, call: Call) -> None:
    folder = after_grid / "pictures"
    folder.mkdir()
    seen = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    seen.save(folder / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    seen.transpose(Image.Transpose.ROTATE_90).save(folder / "1.png", exif=exif)
    hidden = Image.fromarray(np.pad(np.asarray(seen), ((0, 0), (0, 0), (0, 1)), constant_values=255))
    hidden.putpixel((20, 20), (255, 255, 255, 0))
    hidden.save(folder / "2.png")
    seen.putpixel((20, 20), (0, 0, 0))
    seen.save(folder / "3.png")
    assert call("evaluate", run_of(after_grid), "--images", "pictures", "--predictions", "p.csv").code == 0
    lines = [(line["predicted"], line["probability"]) for line in _lines(after_grid / "p.csv")]
    assert lines[0] == lines[1]
    assert lines[2] == lines[3]
    assert lines[0] != lines[2]


def test_what_cannot_be_evaluated(after_grid: Path, call: Call) -> None:
    run = run_of(after_grid)
    (after_grid / "empty").mkdir()
    assert_refused(call("evaluate", run), "name what to run the student on: --data NAME or --images DIR")
    assert_refused(call("evaluate", run, "--data", "digits"), "digits has 10 classes, but the student knows 4")
    assert_refused(call("evaluate", run, "--images", "empty"), "empty holds no image")
    assert_refused(call("evaluate", "tiny:kd:resnet14:resnet8", "--data", "npz:tiny.npz"), "has 2 runs")
