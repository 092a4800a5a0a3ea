"""Fetching, checking and training teachers. No host but loopback is asked."""

import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdtable.files.tensor_file import TensorFile, safetensors_bytes
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.trained_teachers import plan_teachers
from kdtable.teachers import manifest
from kdtable.teachers.locations import sha256_of
from kdtable.teachers.manifest import Published
from kdtable.teachers.weights import read_weights
from tests.cli.command import (
    SMALL,
    Call,
    Shell,
    assert_refused,
    listing,
    query,
    runs_in,
    write_images,
    write_teacher,
)
from tests.cli.conftest import GRID, Grid
from tests.teachers.teacher_site import Reply, Site, teacher

SHARED = Path(__file__).parents[2].parent / "shared"
#: Loopback has no certificate, and what is made here no published checksum.
UNVERIFIED = "--allow-unverified"
#: Nothing listens there.
UNREACHABLE = "http://127.0.0.1:9/resnet56.pth"


def _publish(monkeypatch: pytest.MonkeyPatch, *entries: Published) -> None:
    """Make ``entries`` all that is published."""
    monkeypatch.setattr(manifest, "_manifest", lambda: {entry.name: entry for entry in entries})


@pytest.fixture
def published_file(tmp_path: Path) -> bytes:
    """A checkpoint of the network that is published for CIFAR-100."""
    path = tmp_path / "made" / "resnet56.pth"
    write_teacher(path, network="resnet56", classes=100)
    return path.read_bytes()


def test_a_mirror(site: Site, published_file: bytes, tmp_path: Path, call: Call) -> None:
    site.answers("/m/cifar100/resnet56.pth", Reply(published_file))
    words = ("fetch-teachers", "cifar100/resnet56", "--mirror", f"{site.url}/m/", "--timeout", "60", UNVERIFIED)
    done = Shell(tmp_path).run(*words)
    assert done.code == 0, done.err
    path = tmp_path / "teachers" / "cifar100" / "resnet56.pth"
    assert done.out == "cifar100/resnet56: teachers/cifar100/resnet56.pth\n"
    assert path.read_bytes() == published_file
    pins = tomllib.loads((tmp_path / "teachers" / "checksums.toml").read_text())
    assert pins["cifar100/resnet56"]["sha256"] == sha256_of(path)
    assert site.paths() == ["/m/cifar100/resnet56.pth"]

    again = call(*words)
    assert (again.code, again.out) == (0, done.out)
    assert site.paths() == ["/m/cifar100/resnet56.pth"]
    planned = call("run", "--pairs", "resnet56:resnet20", "--methods", "kd", "--dry-run")
    assert "1 to train" in planned.out
    assert "Not there yet" not in planned.out


def test_plain_http_needs_a_checksum_or_the_users_word(
    site: Site, published_file: bytes, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(monkeypatch, teacher(site.answers("/a.pth", Reply(published_file))))
    refused = call("fetch-teachers", "resnet56")
    assert refused.code == 1
    assert "plain http is refused" in refused.err
    assert "--allow-unverified" in refused.err
    assert site.requests == []
    digest = hashlib.sha256(published_file).hexdigest()
    pins = tmp_path / "teachers" / "checksums.toml"
    pins.write_text(f'"cifar100/resnet56" = {{ sha256 = "{digest}" }}\n')
    assert call("fetch-teachers", "resnet56").code == 0
    assert pins.read_text() == f'"cifar100/resnet56" = {{ sha256 = "{digest}" }}\n'


def test_a_damaged_teacher_is_set_aside_and_fetched_again(
    site: Site, published_file: bytes, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(monkeypatch, teacher(site.answers("/a.pth", Reply(published_file))))
    assert call("fetch-teachers", UNVERIFIED).code == 0
    path = tmp_path / "teachers" / "cifar100" / "resnet56.pth"
    path.write_bytes(published_file[:-1])
    run = ("run", "--pairs", "resnet56:resnet20", "--methods", "kd", "--device", "cpu")
    assert_refused(call(*run, "--dry-run"), str(path.relative_to(tmp_path)))
    assert path.exists()
    assert_refused(call(*run), "set aside as resnet56.pth.corrupt", "'kdtable fetch-teachers cifar100/resnet56'")
    again = call("fetch-teachers", UNVERIFIED)
    assert again.code == 0, again.err
    assert path.read_bytes() == published_file
    path.write_bytes(b"")
    done = call("fetch-teachers")  # the pin is enough
    assert done.code == 0, done.err
    assert "set aside as resnet56.pth.corrupt-2, and is fetched again" in done.err
    assert path.read_bytes() == published_file


def test_the_next_source_is_asked(
    site: Site, published_file: bytes, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = site.answers("/alive.pth", Reply(published_file))
    _publish(monkeypatch, teacher(UNREACHABLE, source))
    done = call("fetch-teachers", "resnet56", "--mirror", f"{site.url}/empty", UNVERIFIED)
    assert done.code == 0, done.err
    assert site.paths() == ["/empty/cifar100/resnet56.pth", "/alive.pth"]
    assert (tmp_path / "teachers" / "cifar100" / "resnet56.pth").read_bytes() == published_file


def test_every_source_is_dead(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(monkeypatch, teacher(UNREACHABLE))
    done = call("fetch-teachers", "resnet56", "--mirror", "http://127.0.0.1:9/m", UNVERIFIED)
    assert done.code == 1
    assert done.out == ""
    assert "Traceback" not in done.err
    sentence, summary = done.errors
    assert sentence.startswith("kdtable: cifar100/resnet56 could not be fetched.")
    assert all(
        text in sentence for text in ("http://127.0.0.1:9/m/cifar100/resnet56.pth", UNREACHABLE, "no connection")
    )
    assert all(way in sentence for way in ("--mirror", "--train-missing", "--teacher resnet56=FILE"))
    assert summary == "kdtable: 1 teacher could not be fetched"
    assert not list(tmp_path.rglob("*.pth*"))


def test_one_dead_source_does_not_keep_the_others(
    site: Site, published_file: bytes, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = replace(teacher(UNREACHABLE), name="cifar100/resnet110", network="resnet110")
    _publish(monkeypatch, dead, teacher(site.answers("/alive.pth", Reply(published_file))))
    done = call("fetch-teachers", UNVERIFIED)
    assert done.code == 1
    assert done.out == "cifar100/resnet56: teachers/cifar100/resnet56.pth\n"
    assert "cifar100/resnet110 could not be fetched" in done.err
    assert (tmp_path / "teachers" / "cifar100" / "resnet56.pth").exists()


def test_a_file_of_another_network_is_refused(
    site: Site, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_teacher(tmp_path / "other.pth", network="resnet20", classes=100)
    _publish(monkeypatch, teacher(site.answers("/a.pth", Reply((tmp_path / "other.pth").read_bytes()))))
    done = call("fetch-teachers", "resnet56", UNVERIFIED)
    assert done.code == 1
    assert "is not a resnet56" in done.err
    assert not list((tmp_path / "teachers").rglob("resnet56*"))


def test_missing_teachers_are_trained_when_asked(
    site: Site, published_file: bytes, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def train(cells: Sequence[PlannedRun], *places: object, retrain: bool = False) -> int:
        assert not retrain
        asked.append((cells, *places))
        return 0

    monkeypatch.setattr("kdtable.cli.training.train", train)
    monkeypatch.setattr("kdtable.execution.install_teachers.install", lambda *_: [])
    dead = replace(teacher(UNREACHABLE), name="cifar100/resnet110", network="resnet110")
    _publish(monkeypatch, dead, teacher(site.answers("/alive.pth", Reply(published_file))))
    done = call(
        "fetch-teachers", "--train-missing", "--results", "r", "--data-root", "d", "--device", "cpu", UNVERIFIED
    )
    assert done.code == 0, done.err
    assert "cifar100/resnet110 could not be fetched" in done.err
    (((cell,), results, device, data_root, *_),) = asked
    assert (results, device, data_root) == (Path("r"), "cpu", Path("d"))
    assert (cell.run.student, cell.run.data.key, cell.run.row) == ("resnet110", "cifar100", "vanilla")
    assert (cell.run.recipe.epochs, cell.run.recipe.milestones) == (240, (150, 180, 210))


def test_a_missing_teacher_becomes_one_that_runs_find(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for real: only the number of epochs and the data set are small."""
    from kdtable.data import names, spec
    from kdtable.planning import trained_teachers
    from kdtable.planning.request import Changes, Request

    write_images(tmp_path / "tiny.npz", {"num_classes": np.array(100)})
    small = names.resolve(f"npz:{tmp_path / 'tiny.npz'}")
    monkeypatch.setitem(spec.BUILT_IN.targets, "cifar100", replace(small, name="cifar100", key="cifar100"))
    short = Request((), (), (), changes=Changes(1, 16))
    monkeypatch.setattr(
        trained_teachers,
        "plan_teachers",
        lambda networks, data, seed, _, find: plan_teachers(networks, data, seed, short, find),
    )
    _publish(monkeypatch, replace(teacher(UNREACHABLE), name="cifar100/resnet8", network="resnet8"))
    done = call("fetch-teachers", "--train-missing", "--device", "cpu", UNVERIFIED)
    assert done.code == 0, done.err
    assert done.out == "trained: teachers/cifar100/resnet8.safetensors\n"
    asked = ("run", "--pairs", "resnet8:resnet14", "--methods", "kd", "--epochs", "1", "--batch-size", "16")
    again = call(*asked, "--device", "cpu")
    assert again.code == 0, again.err
    assert "with teacher resnet8" in again.err


def test_checking_a_named_file(grid: Grid, after_grid: Path, call: Call) -> None:
    (path,) = (after_grid / "teachers").rglob("resnet14.safetensors")
    before = listing(after_grid)
    done = call("check-teachers", "--data", "npz:tiny.npz", "--teacher", f"resnet14={path}", "--device", "cpu")
    assert done.code == 0, done.err
    assert listing(after_grid) == before
    (row,) = _rows(done.out)
    (stored,) = query(after_grid / "results", "select metrics, images from teachers")
    top1 = json.loads(str(stored["metrics"]))["top1"]
    assert stored["images"] == 24
    error = 100 * math.sqrt(top1 * (1 - top1) / 24)
    assert row == ["resnet14", "tiny", "24", f"{100 * top1:.2f}", "", "", f"{error:.2f}", "resnet14.safetensors"]


def test_checking_the_teachers_of_a_data_set(after_grid: Path) -> None:
    shell = Shell(after_grid)
    named = shell.run("check-teachers", "res14", "--data", "npz:tiny.npz", "--device", "cpu")
    assert named.code == 0, named.err
    ((network, *_),) = _rows(named.out)
    assert network == "resnet14"


def test_checking_a_published_teacher(call: Call) -> None:
    file, images = SHARED / "teachers" / "resnet56-4bfd9763.th", SHARED / "data" / "cifar10_excerpt.npz"
    if not (file.exists() and images.exists()):
        pytest.skip("no published checkpoint and images in a folder shared beside the repository")
    done = call("check-teachers", "--data", f"npz:{images}", "--teacher", f"resnet56_a={file}", "--device", "cpu")
    assert done.code == 0, done.err
    (row,) = _rows(done.out)
    assert row == ["resnet56_a", "cifar10_excerpt", "1017", "92.72", "93.39", "-0.67", "0.81", file.name]


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_training_two_teachers(tiny: Path, call: Call) -> None:
    done = call("train-teachers", "res8", "resnet14", "--epochs", "1", "--seed", "3", *SMALL)
    assert done.code == 0, done.err
    assert "2 runs of resnet8, resnet14: vanilla" in done.err
    files = sorted((tiny / "teachers").rglob("*.safetensors"))
    assert [file.name for file in files] == ["resnet14.safetensors", "resnet8.safetensors"]
    runs = runs_in(tiny / "results")
    assert {run["seed"] for run in runs.values()} == {3}
    for file in files:
        weights = read_weights(file)
        assert weights.run is not None
        assert runs[weights.run]["student"] == file.stem
        trained = tiny / "results" / "runs" / weights.run / "student.safetensors"
        assert trained.read_bytes() == file.read_bytes()
        assert weights.mean is not None
        assert len(weights.mean) == 3


def test_a_damaged_teacher_of_ones_own_is_restored_from_the_store(tiny: Path, call: Call) -> None:
    words = ("train-teachers", "resnet8", "--epochs", "1", *SMALL)
    assert call(*words).code == 0
    (path,) = (tiny / "teachers").rglob("resnet8.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    run = ("run", "--pairs", "resnet8:resnet14", "--methods", "kd", "--epochs", "1", *SMALL)
    assert_refused(
        call(*run), "set aside as resnet8.safetensors.corrupt", "'kdtable train-teachers resnet8 --data npz:"
    )
    path.write_bytes(whole[:-5])
    again = call(*words)
    assert again.code == 0, again.err
    assert "set aside as resnet8.safetensors.corrupt-2" in again.err
    assert "epoch" not in again.err, "nothing is trained again"
    assert read_weights(path).run == read_weights(_written(tiny / "whole.pth", whole)).run


def _other_weights(path: Path) -> None:
    """Add noise to a teacher of ours that still says which run trained it."""
    with path.open("rb") as file:
        content = TensorFile(file)
        tensors, metadata = content.load(), content.metadata
    noisy = {
        key: value + 0.1 * torch.randn(value.shape) if value.is_floating_point() else value
        for key, value in tensors.items()
    }
    path.write_bytes(safetensors_bytes(noisy, metadata))


def test_other_weights_do_not_teach_under_a_runs_name(after_grid: Path, call: Call) -> None:
    (path,) = (after_grid / "teachers").rglob("resnet14.safetensors")
    whole = path.read_bytes()
    stored = runs_in(after_grid / "results")
    _other_weights(path)
    path.rename(after_grid / "mine.safetensors")
    mine = call(*GRID, "--seeds", "2", "--teacher", "resnet14=mine.safetensors")
    assert_refused(mine, "mine.safetensors holds other weights than kdtable wrote into it")
    path.write_bytes((after_grid / "mine.safetensors").read_bytes())
    assert_refused(
        call(*GRID, "--seeds", "3"), str(path.relative_to(after_grid)), "set aside as resnet14.safetensors.corrupt"
    )
    _written(path, (after_grid / "mine.safetensors").read_bytes())
    again = call("train-teachers", "resnet14", "--epochs", "2", *SMALL)
    assert again.code == 0, again.err
    assert "set aside as resnet14.safetensors.corrupt-2" in again.err
    assert path.read_bytes() == whole
    done = call(*GRID, "--seeds", "2")
    assert (done.code, done.err) == (0, ""), "what is done is not trained again"
    assert runs_in(after_grid / "results") == stored


def test_a_student_of_ours_teaches_the_next_one(after_grid: Path, call: Call) -> None:
    """It is named by its run, whatever its place."""
    student = min((after_grid / "results").glob("runs/*/student.safetensors"))
    network = str(runs_in(after_grid / "results")[student.parent.name]["student"])
    words = ("run", "--pairs", f"{network}:{network}", "--methods", "kd", "--epochs", "1", *SMALL)
    done = call(*words, "--teacher", f"{network}={student}", "--results", "next")
    assert done.code == 0, done.err
    (protocol,) = query(after_grid / "next", "select identity from protocols")
    assert student.parent.name in str(protocol["identity"])


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", ["cut short", "another run's"])
def test_a_students_file_that_is_not_its_runs_becomes_no_teacher(how: str, tiny: Path, call: Call) -> None:
    words = ("train-teachers", "resnet8", "resnet14", "--epochs", "1", *SMALL)
    assert call(*words).code == 0
    students = sorted((tiny / "results").glob("runs/*/student.safetensors"))
    students[0].write_bytes(students[1].read_bytes() if how == "another run's" else students[0].read_bytes()[:-9])
    for path in (tiny / "teachers").rglob("*.safetensors"):
        path.unlink()
    reason = "belongs to another run" if how == "another run's" else "truncated"
    assert_refused(call(*words), "the trained network is gone", students[0].parent.name, reason, "--results")
    installed = [read_weights(path).run for path in (tiny / "teachers").rglob("*.safetensors")]
    assert students[0].parent.name not in installed


def test_a_teacher_that_falls_short_is_said_so(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained network under the name of a published one; 99 % are claimed."""
    write_images(tmp_path / "tiny.npz")
    write_teacher(tmp_path / "resnet14.pth")
    file = tmp_path / "resnet14.pth"
    torch.save({"model": torch.load(file, weights_only=True)["model"]}, file)
    _publish(monkeypatch, replace(teacher(), network="resnet14", sha256=sha256_of(file), claimed_top1=99.0))
    done = call("check-teachers", "--data", "npz:tiny.npz", "--teacher", "resnet14=resnet14.pth", "--device", "cpu")
    assert done.code == 0, done.err
    (row,) = _rows(done.out)
    assert f"resnet14 falls {99 - float(row[3]):.2f} points short of its claim" in done.out
