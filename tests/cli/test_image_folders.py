"""ImageNet and CUB-200-2011 from the command line: unpacking, and runs on images that are decoded as needed."""

import os
from pathlib import Path

import pytest

from kdtable.data import spec, streamed, unpack
from kdtable.data.formats import imagenet
from tests.cli.command import Call, assert_refused, epochs_in, runs_in
from tests.data.archives import write_cub, write_imagenet
from tests.data.photos import TRAIN, cub_folder, image_folder

ASKED = ("run", "--pairs", "resnet8:resnet8", "--methods", "vanilla", "--seeds", "1", "--epochs", "1")
SMALL = (*ASKED, "--batch-size", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops that a network for small images takes, decoded in this process."""
    monkeypatch.setattr(spec, "CROP_SIZE", 32)
    monkeypatch.setattr(streamed, "default_workers", lambda cores: 0)
    monkeypatch.setattr(os, "sync", lambda: None)  # it would wait for all that anybody on this machine has written


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all archives, which are taken for the official ones."""
    monkeypatch.setattr(imagenet, "OFFICIAL", write_imagenet(tmp_path / "from"))
    monkeypatch.setattr(unpack, "CUB_MD5", write_cub(tmp_path / "from"))
    monkeypatch.setattr(unpack, "CUB_COUNTS", (3, 5, 4))
    return tmp_path / "from"


@pytest.mark.parametrize("kind", ["imagenet", "cub200"])
def test_archives_are_unpacked_and_trained_on(kind: str, source: Path, tmp_path: Path, call: Call) -> None:
    done = call("fetch-data", kind, "--from", str(source))
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{kind}: data/{kind}, for --data {kind}:data/{kind}\n"
    again = call("fetch-data", kind, "--from", str(source))
    assert (again.code, again.out) == (0, done.out)
    assert "was there already, and has all of its images" in again.err

    ran = call(*SMALL, "--data", f"{kind}:data/{kind}")
    assert ran.code == 0, ran.err
    (run,) = runs_in(tmp_path / "results").values()
    assert run["status"] == "done"
    assert str(run["data"]).startswith(f"{kind}-")


def test_two_runs_on_one_set_are_equal(tmp_path: Path, call: Call) -> None:
    image_folder(tmp_path / "mine")
    for results in ("one", "two"):
        done = call(*SMALL, "--data", "imagenet:mine", "--results", results)
        assert done.code == 0, done.err
    assert epochs_in(tmp_path / "one") == epochs_in(tmp_path / "two")


def test_archives_without_their_folder(call: Call) -> None:
    assert_refused(call("fetch-data", "imagenet"), "imagenet cannot be downloaded here", "--from DIR")


def test_archives_that_are_not_there(tmp_path: Path, call: Call) -> None:
    done = call("fetch-data", "cub200", "--from", "nowhere")
    assert (done.code, done.out) == (1, "")
    assert "nowhere/CUB_200_2011.tgz: is not there; get it from https://data.caltech.edu" in done.err
    assert len(done.errors) == 1


def test_another_archive_than_the_official_one(source: Path, call: Call) -> None:
    write_cub(source, {"CUB_200_2011/more.txt": b"of somebody"})
    done = call("fetch-data", "cub200", "--from", str(source))
    assert done.code == 1
    assert "its MD5 is" in done.err
    assert call("fetch-data", "cub200", "--from", str(source), "--allow-unverified").code == 0


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("imagenet:nowhere", "nowhere: no such folder of images"),
        ("cub200:nowhere", "nowhere: no such folder; expected the published CUB_200_2011"),
        ("imagenet", "data set 'imagenet' lacks a path: write imagenet:PATH"),
    ],
)
def test_a_set_that_is_not_there(data: str, part: str, tmp_path: Path, call: Call) -> None:
    assert_refused(call(*SMALL, "--data", data), part)
    assert not (tmp_path / "results").exists()


def test_an_image_that_cannot_be_read_ends_the_run_with_its_name(tmp_path: Path, call: Call) -> None:
    root = image_folder(tmp_path / "mine")
    (root / "train" / TRAIN[2]).write_bytes(b"<html>")
    done = call(*SMALL, "--data", "imagenet:mine")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert f"train/{TRAIN[2]}: not an image that can be read (none of PNG, JPEG" in done.errors[-1]
    assert "--skip-unreadable" in done.errors[-1]
    (run,) = runs_in(tmp_path / "results").values()
    assert run["status"] == "planned"  # it goes on when the image is replaced


def test_a_table_says_how_many_images_were_left_out(tmp_path: Path, call: Call) -> None:
    (image_folder(tmp_path / "mine") / "train" / TRAIN[2]).write_bytes(b"<html>")
    done = call(*SMALL, "--data", "imagenet:mine", "--skip-unreadable")
    assert done.code == 0, done.err
    assert "1 image that cannot be read is left out" in done.err
    assert "Without 1 of the data set's images, which could not be read." in " ".join(done.out.split())


def test_a_dry_run_opens_no_image(tmp_path: Path, call: Call) -> None:
    root = cub_folder(tmp_path / "birds")
    for image in root.rglob("*.jpg"):
        image.write_bytes(b"<html>")
    done = call(*SMALL, "--data", "cub200:birds", "--dry-run")
    assert done.code == 0, done.err
