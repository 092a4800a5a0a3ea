"""``kdtable run --checkpoints``: files elsewhere than in the results folder, and what uses them there."""

import signal
from pathlib import Path

import fsspec
import pytest

from kdtable.cli.cluster import checkpoints_url
from tests.cli.command import (
    SMALL,
    TEACHER,
    Call,
    Shell,
    assert_refused,
    assert_same_numbers,
    epochs_in,
    finish,
    runs_in,
    wait_for,
    write_images,
)

RUN = ("run", "--pairs", "resnet14:resnet8", "--methods", "kd", "--seeds", "1,", *SMALL, *TEACHER)


def test_killed_and_called_again(tiny: Path, shell: Shell, call: Call) -> None:
    write_images(tiny / "tiny.npz", train=160)
    words = (*RUN, "--epochs", "2")
    command = shell.start(*words, "--checkpoints", "else where")
    try:
        wait_for("epoch 1/2", command)
    finally:
        command.send_signal(signal.SIGKILL)
    finish(command)
    there = tiny / "else where"
    assert list(there.glob("*/checkpoint-1-1-*.pt"))
    assert not list((tiny / "results").glob("runs/*/*.pt"))

    assert call(*words, "--checkpoints", "else where").code == 0
    (run,) = runs_in(tiny / "results")
    (student,) = there.glob("*/*")
    assert (student.parent.name, student.name[:12]) == (run, "student-2-2-"), "and nothing else is left"
    assert call("store", "check").code == 0

    assert call(*words, "--results", "alone").code == 0
    told = call("evaluate", run, "--data", "npz:tiny.npz")
    assert told.code == 0, told.err
    assert call("export", run, "--output", "mine.safetensors").code == 0
    assert Path("mine.safetensors").read_bytes() == Path(f"alone/runs/{run}/student.safetensors").read_bytes()
    assert_same_numbers(Path("results"), Path("alone"))

    assert call("store", "remove", run, "--yes").code == 0
    assert not list(there.glob("*"))


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("nowhere://place", ("has the unknown scheme 'nowhere': use a folder, s3://BUCKET/NAME or",)),
        ("tiny.npz/place", ("tiny.npz/place cannot be written to (Not a directory): see to that, or name",)),
        ("memory://place", ("memory:// is gone when the command ends",)),
        ("sftp://me:secret@host/place", ("has a password, which the store would keep",)),
    ],
)
def test_places_that_are_refused(url: str, parts: tuple[str, ...], tiny: Path, call: Call) -> None:
    done = call(*RUN, "--epochs", "1", "--checkpoints", url)
    assert_refused(done, *parts)
    assert "secret" not in done.err
    assert not Path("results").exists()


def test_where_the_option_and_the_settings_of_clusters_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kdtable.toml").write_text('[cluster]\ncheckpoints = "s3://bucket/of-the-file/"\n')
    assert checkpoints_url(None, "ray", None) == "s3://bucket/of-the-file"
    assert checkpoints_url(None, "slurm", ["checkpoints=gs://other/name"]) == "gs://other/name"
    assert checkpoints_url("mine", "ray", None) == f"file://{tmp_path}/mine"
    assert checkpoints_url(None, "local", None) is None, "that table is for clusters"


def test_without_the_package(tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> type:
        raise ImportError(f"Install s3fs to access {scheme}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    done = call(*RUN, "--epochs", "1", "--checkpoints", "s3://bucket/name")
    assert_refused(done, "--checkpoints s3://bucket/name needs s3fs: pip install 'kdtable[cloud]'")


def test_what_others_start_from_is_fetched(tiny: Path, call: Call) -> None:
    """``dih`` starts from its teacher's heads, a run of their own."""
    words = (
        "run",
        "--paper",
        "dih",
        "--pairs",
        "resnet14:resnet8",
        "--methods",
        "dih",
        "--seeds",
        "1",
        "--epochs",
        "1",
    )
    assert call(*words, *SMALL, *TEACHER, "--results", "alone").code == 0
    done = call(*words, *SMALL, *TEACHER, "--checkpoints", "there")
    assert done.code == 0, done.err
    assert len(list(Path("there").glob("*/student-*"))) == 2
    assert epochs_in(Path("results")) == epochs_in(Path("alone"))
