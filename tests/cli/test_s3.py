"""Checkpoints and students in a bucket, through s3fs and an HTTP server on loopback that speaks S3."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.cli.command import (
    SMALL,
    TEACHER,
    Call,
    Shell,
    assert_refused,
    assert_same_numbers,
    finish,
    runs_in,
    wait_for,
    write_images,
)

RUN = ("run", "--pairs", "resnet14:resnet8", "--methods", "kd", "--seeds", "1,", "--epochs", "2", *SMALL, *TEACHER)
PLACE = "s3://bucket/place"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of a service whose address and keys are in the environment, as a user has them."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
    finally:
        server.stop()


def _names(bucket: Any) -> list[str]:
    """Kind, attempt and epochs of each file in the bucket."""
    return sorted(file.key.rpartition("/")[2].rpartition("-")[0] for file in bucket.objects.all())


def test_killed_and_called_again(bucket: Any, tiny: Path, shell: Shell, call: Call) -> None:
    write_images(tiny / "tiny.npz", train=160)
    command = shell.start(*RUN, "--checkpoints", PLACE)
    try:
        wait_for("epoch 1/2", command)
    finally:
        command.send_signal(signal.SIGKILL)
    finish(command)
    assert "checkpoint-1-1" in _names(bucket)
    assert not list((tiny / "results").glob("runs/*/*.pt"))

    done = call(*RUN, "--checkpoints", PLACE)
    assert done.code == 0, done.err
    assert _names(bucket) == ["student-2-2"], "and nothing else is left"
    assert call("store", "check").code == 0
    assert call(*RUN, "--results", "alone").code == 0
    (run,) = runs_in(tiny / "results")
    assert call("export", run, "--output", "mine.safetensors").code == 0
    assert Path("mine.safetensors").read_bytes() == Path(f"alone/runs/{run}/student.safetensors").read_bytes()
    assert_same_numbers(Path("results"), Path("alone"))

    bucket.objects.delete()
    told = call("store", "check")
    assert told.code == 1
    assert "is gone" in told.out + told.err
    assert call("store", "remove", run, "--yes").code == 0


def test_a_bucket_that_is_not_there(bucket: Any, tiny: Path, call: Call) -> None:
    done = call(*RUN, "--checkpoints", "s3://another/place")
    assert_refused(
        done, "--checkpoints s3://another/place cannot be written to (", "see to that, or name another place"
    )
    assert not Path("results").exists()
