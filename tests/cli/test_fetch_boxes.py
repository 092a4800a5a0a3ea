"""Fetching COCO and VOC from a web site on loopback. The archives are small ones of their layouts."""

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from kdtable import data
from kdtable.data.detection import archives, fetch
from kdtable.data.detection.archives import PUBLISHED, Published
from kdtable.data.spec import Listener
from kdtable.errors import Trouble
from kdtable.files.download import Patience
from tests.cli.command import Call, listing
from tests.teachers.teacher_site import Reply, Site

COCO = ("fetch-data", "coco")
VOC = ("fetch-data", "voc")


def _jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (value, 10, 20)).save(file, "jpeg")
    return file.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"VOCdevkit/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _instances(*images: int) -> bytes:
    named = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 20, "width": 30} for n in images]
    boxes = [{"id": n, "image_id": n, "category_id": 3, "bbox": [1, 2, 10, 12], "area": 90.0} for n in images]
    return json.dumps({"images": named, "annotations": boxes, "categories": [{"id": 3, "name": "ant"}]}).encode()


def _coco() -> dict[str, bytes]:
    """Archives by name, with files that are not needed, and one that would lead out of the folder."""
    boxes = {
        f"annotations/instances_{part}2017.json": _instances(*of) for part, of in (("train", (1, 2)), ("val", (3,)))
    }
    return {
        "annotations_trainval2017.zip": _zip({**boxes, "annotations/captions_val2017.json": b"{}"}),
        "val2017.zip": _zip({"val2017/000000000003.jpg": _jpeg(3), "../val2017/000000000004.jpg": b"out"}),
        "train2017.zip": _zip({f"train2017/{n:012d}.jpg": _jpeg(n) for n in (1, 2)}),
    }


def _voc() -> dict[str, bytes]:
    sides = "<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>12</ymax>"
    size = "<size><width>30</width><height>20</height></size>"
    xml = f"<annotation>{size}<object><name>dog</name><bndbox>{sides}</bndbox></object></annotation>".encode()

    def part(year: str, listed: str, name: str) -> bytes:
        return _tar(
            {
                f"{year}/JPEGImages/{name}.jpg": _jpeg(9),
                f"{year}/Annotations/{name}.xml": xml,
                f"{year}/ImageSets/Main/{listed}.txt": f"{name}\n".encode(),
                f"{year}/SegmentationClass/{name}.png": b"not needed",
            }
        )

    return {
        "VOCtrainval_06-Nov-2007.tar": part("VOC2007", "trainval", "000001"),
        "VOCtest_06-Nov-2007.tar": part("VOC2007", "test", "000002"),
        "VOCtrainval_11-May-2012.tar": part("VOC2012", "trainval", "2008_000001"),
    }


SMALL = {"coco": (_coco(), (1, 2, 1)), "voc": (_voc(), (20, 2, 1))}


@pytest.fixture(autouse=True)
def _small(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published archives are the small ones, on loopback."""
    for kind, (files, counts) in SMALL.items():
        small = tuple(
            replace(
                one,
                url=site.answers(f"/{one.file}", Reply(files[one.file])),
                md5=hashlib.md5(files[one.file]).hexdigest(),
            )
            for one in PUBLISHED[kind].archives
        )
        monkeypatch.setitem(archives.PUBLISHED, kind, Published(small, counts))


def _asked(kind: str) -> list[str]:
    return [f"/{one.file}" for one in PUBLISHED[kind].archives]


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_it_is_downloaded_once_and_is_read(kind: str, site: Site, tmp_path: Path, call: Call) -> None:
    done = call("fetch-data", kind)
    assert (done.code, done.out, done.err) == (0, f"{kind}: data/{kind}, for --data {kind}:data/{kind}\n", "")
    assert site.paths() == _asked(kind)
    spec = data.resolve(f"{kind}:{tmp_path / 'data' / kind}")
    assert (spec.num_classes, spec.train_count, spec.test_count) == SMALL[kind][1]
    before = listing(tmp_path / "data")
    assert not [name for name in before if "part" in name or "SegmentationClass" in name or "captions" in name]
    assert not list(tmp_path.rglob("000000000004.jpg"))  # it would have led out of the folder
    again = call("fetch-data", kind)
    assert (again.code, again.out) == (0, done.out)
    assert "was there already, and has all of its images" in again.err
    assert site.paths() == _asked(kind)
    assert listing(tmp_path / "data") == before


def test_a_broken_download_is_continued(site: Site, call: Call) -> None:
    content = SMALL["coco"][0]["train2017.zip"]
    site.answers("/train2017.zip", Reply(content, stops_after=len(content) // 2), Reply(content))
    assert call(*COCO).code == 0
    assert site.ranges() == [None, None, None, f"bytes={len(content) // 2}-"]


def test_the_next_call_goes_on(site: Site, tmp_path: Path) -> None:
    content = SMALL["coco"][0]["train2017.zip"]
    site.answers("/train2017.zip", Reply(content, stops_after=len(content) // 2), Reply(status=404))
    patience, quiet = Patience(pause=lambda _: None), Listener(lambda done, total: None, lambda text: None)
    with pytest.raises(Trouble, match=r"train2017.zip: the server answered 404.* Call again to go on"):
        fetch.fetch("coco", tmp_path, quiet, patience=patience)
    assert not (tmp_path / "coco").exists()
    site.requests.clear()
    site.answers("/train2017.zip", Reply(content))
    assert fetch.fetch("coco", tmp_path, quiet, patience=patience) == tmp_path / "coco"
    assert site.paths() == ["/train2017.zip"]  # what was unpacked is not asked for again
    assert site.ranges() == [f"bytes={len(content) // 2}-"]


def test_another_archive_is_refused_unless_it_is_allowed(site: Site, tmp_path: Path, call: Call) -> None:
    other = _zip({f"train2017/{n:012d}.jpg": _jpeg(n + 100) for n in (1, 2)})
    site.answers("/train2017.zip", Reply(other))
    done = call(*COCO)
    assert (done.code, done.out) == (1, "")
    (sentence,) = done.errors
    assert "its MD5 is" in sentence
    assert "--allow-unverified" in sentence
    assert not (tmp_path / "data/coco").exists()
    assert call(*COCO, "--allow-unverified").code == 0


def test_an_archive_of_too_few_images_is_refused_in_any_case(site: Site, tmp_path: Path, call: Call) -> None:
    fewer = _zip(
        {f"annotations/instances_{part}2017.json": _instances(3 - n) for n, part in enumerate(("train", "val"))}
    )
    site.answers("/annotations_trainval2017.zip", Reply(fewer))
    site.answers("/train2017.zip", Reply(_zip({f"train2017/{3:012d}.jpg": _jpeg(3)})))
    site.answers("/val2017.zip", Reply(_zip({f"val2017/{2:012d}.jpg": _jpeg(2)})))
    done = call(*COCO, "--allow-unverified")
    assert done.code == 1
    assert "has 1 training and 1 test images of 1 classes; expected 2, 1 and 1" in done.err
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".fetch.lock"]


@pytest.mark.parametrize(("words", "name"), [(COCO, "val2017.zip"), (VOC, "VOCtest_06-Nov-2007.tar")])
def test_what_is_no_archive_is_refused(
    words: tuple[str, str], name: str, site: Site, tmp_path: Path, call: Call
) -> None:
    site.answers(f"/{name}", Reply(b"<html>a page of a hotel's network</html>"))
    done = call(*words, "--allow-unverified")
    assert done.code == 1
    (sentence,) = done.errors
    assert f"{name}: no " in sentence
    assert "or a damaged one" in sentence
    site.answers(f"/{name}", Reply(SMALL[words[1]][0][name]))
    assert call(*words, "--allow-unverified").code == 0  # it was not kept


def test_a_folder_of_the_archives(site: Site, tmp_path: Path, call: Call) -> None:
    source = tmp_path / "given"
    source.mkdir()
    for name, content in SMALL["voc"][0].items():
        (source / name).write_bytes(content)
    before = listing(source)
    assert call(*VOC, "--from", "given").code == 0
    assert (site.paths(), listing(source)) == ([], before)
    (source / "VOCtest_06-Nov-2007.tar").unlink()
    done = call(*VOC, "--from", "given", "--data-root", "other")
    assert done.code == 1
    assert "given/VOCtest_06-Nov-2007.tar: there is no such file" in done.err


def test_another_place(site: Site, call: Call) -> None:
    for name, content in SMALL["voc"][0].items():
        site.answers(f"/mirror/{name}", Reply(content))
    assert call(*VOC, "--from", f"{site.url}/mirror/").code == 0
    assert site.paths() == [f"/mirror{path}" for path in _asked("voc")]


def test_the_name_alone_finds_it(call: Call) -> None:
    asked = ("run", "--paper", "detection", "--data", "voc", "--pairs", "retinanet_w16:retinanet_w8", "--dry-run")
    words = (*asked, "--methods", "vanilla", "--seeds", "1", "--batch-size", "2", "--device", "cpu")
    absent = call(*words)
    assert absent.code == 2
    assert "write voc:PATH; 'kdtable fetch-data voc' gets the published set" in absent.err
    assert call(*VOC).code == 0
    done = call(*words)
    assert done.code == 0, done.err


def test_the_pins_of_voc_are_those_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    monkeypatch.undo()
    theirs = [DATASET_YEAR_DICT[year] for year in ("2007", "2007-test", "2012")]
    assert [(one.url, one.md5) for one in PUBLISHED["voc"].archives] == [(one["url"], one["md5"]) for one in theirs]
