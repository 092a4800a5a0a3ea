"""MoCo's published encoder on the command line: fetched by its name, and a teacher without labels alone."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from kdtable.teachers import manifest
from tests.cli.command import Call
from tests.teachers.teacher_site import Reply, open_site

PATH = "/imagenet/moco_resnet50.pth"


def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    (entry,) = manifest.find(["moco_resnet50"])
    alone = replace(entry, sources=())  # a mirror, and no other place
    monkeypatch.setattr(manifest, "_manifest", lambda: {entry.name: alone})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_site() as site:
        mirror = site.answers(PATH, Reply(b"no checkpoint")).removesuffix(PATH)
        done = call("fetch-teachers", "moco_resnet50", "--mirror", mirror, "--allow-unverified")
    assert (done.code, done.out) == (1, "")
    digest = hashlib.md5(b"no checkpoint", usedforsecurity=False).hexdigest()
    assert f"its MD5 is {digest}, but 59fd9945 is published" in done.err
    assert not list((tmp_path / "teachers" / "imagenet").iterdir())


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            "run --pairs moco_resnet50:tv_resnet18 --methods kd",
            "has no classifier: it can only be a teacher, and of students without",
        ),
        ("train-teachers moco_resnet50", "has no classifier: it can only be a teacher, and of students without labels"),
        (
            "run --paper moco-cifar --pairs moco_resnet50:moco_resnet50 --methods moco",
            "has no classifier: it can only be a teacher, and of students without labels (--paper mgd-unsup)",
        ),
        ("check-teachers moco_resnet50", "has no classifier, so that it has no accuracy: 'kdtable run' probes its"),
    ],
)
def test_it_teaches_without_labels_alone(args: str, sentence: str, call: Call) -> None:
    done = call(*args.split())
    assert (done.code, done.out) == (2, "")
    assert f"moco_resnet50 {sentence}" in done.err
