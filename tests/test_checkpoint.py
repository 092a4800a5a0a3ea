"""Checkpoints are read whole or refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdtable.training import checkpoint
from kdtable.training.checkpoint import BadCheckpoint

STATE = {"run": "r1", "history": [{"epoch": 1}], "student": {"w": torch.arange(6.0)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "deep" / "c.pt", STATE)
    return tmp_path / "deep" / "c.pt"


def test_round_trip(path: Path) -> None:
    state = checkpoint.load(path)
    assert state["history"] == STATE["history"]
    assert torch.equal(state["student"]["w"], torch.arange(6.0))
    assert [p.name for p in path.parent.iterdir()] == ["c.pt"]


def test_a_failed_save_leaves_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoint.save(path, {"history": [], "bad": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files_are_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadCheckpoint):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"a text\n",
        b"\x80\x02N.",
        b"PK\x03\x04",
        b"\x89PNG\r\n",
        b"\x00" * 100,
        pickle.dumps({"history": 1}, protocol=2),
        b"(lp0\n.",
    ],
)
def test_foreign_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint):
        checkpoint.load(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint):
        checkpoint.load(tmp_path / "absent.pt")


@pytest.mark.parametrize("state", [{}, {"student": {}}, [1, 2], torch.zeros(2), {"epoch": 240, "model": {}}])
def test_files_of_other_content_are_refused(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(BadCheckpoint, match="not a checkpoint of a run"):
        checkpoint.load(tmp_path / "c.pt")


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_not_run(path: Path, how: str) -> None:
    marker = path.parent / "marker"
    state = STATE | {"optimizer": Malicious(marker)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"history": [], "x": Malicious(marker)}, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(BadCheckpoint):
        checkpoint.load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the file would have run its code elsewhere"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=60), head=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04"]))
def test_any_bytes_are_refused(path: Path, content: bytes, head: bytes) -> None:
    path.write_bytes(head + content)
    with pytest.raises(BadCheckpoint):
        checkpoint.load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_unchanged_or_refused(path: Path, data: st.DataObject) -> None:
    checkpoint.save(path, STATE)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        state = checkpoint.load(path)
    except BadCheckpoint:
        return
    assert (state["run"], state["history"]) == ("r1", [{"epoch": 1}])
    assert torch.equal(state["student"]["w"], torch.arange(6.0))
