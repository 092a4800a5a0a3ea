"""Students without labels on an image folder: one epoch from the command to the table."""

import os
from pathlib import Path

import pytest

from kdtable.data import spec, streamed
from tests.cli.command import Call, runs_in, write_teacher
from tests.data.photos import image_folder

GRID = (
    *("run", "--paper", "moco-cifar", "--data", "imagenet:mine", "--pairs", "resnet14:resnet8", "--seeds", "1"),
    *("--methods", "moco,mgd,seed", "--epochs", "1", "--batch-size", "4", "--set", "queue=8", "--set", "bn_splits=2"),
    *("--teacher", "resnet14=resnet14.pth", "--device", "cpu"),
)


def test_a_grid_trains_and_prints_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setattr(spec, "CROP_SIZE", 32)
    monkeypatch.setattr(streamed, "default_workers", lambda cores: 0)
    monkeypatch.setattr(os, "sync", lambda: None)
    image_folder(tmp_path / "mine")
    write_teacher(tmp_path / "resnet14.pth", classes=2)
    done = call(*GRID)
    assert done.code == 0, done.err
    assert "linear-probe top-1 accuracy" in " ".join(done.out.split())
    runs = runs_in(tmp_path / "results").values()
    assert {run["row"]: run["status"] for run in runs} == dict.fromkeys(("moco", "mgd", "seed"), "done")
    reported = call("report", "--metric", "probe")
    assert (reported.code, reported.err) == (0, "")
    assert "seed" in reported.out
