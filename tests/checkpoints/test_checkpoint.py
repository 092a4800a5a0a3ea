"""Checkpoints are read whole or refused, and the one before takes the place of a bad one."""

import io
import os
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdtable.checkpoints import checkpoint
from kdtable.checkpoints.checkpoint import BadCheckpoint, NoAccess
from tests.engine import member, task, teacher
from tests.tensor_files import Claim, forged, mutations, saved

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
    with pytest.raises(NoAccess):
        checkpoint.load(tmp_path / "absent.pt")


def test_a_file_that_is_too_large_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_BYTES", path.stat().st_size - 1)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(BadCheckpoint, match="bytes, more than the"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"student": {}},
        [1, 2],
        torch.zeros(2),
        {"epoch": 240, "model": {}},
        {"history": {}},
        {"history": [{}, torch.zeros(2)]},
    ],
)
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


def test_damaged_files_are_read_unchanged_or_refused(tmp_path: Path) -> None:
    whole = saved(STATE)
    path = tmp_path / "c.pt"
    refused = 0
    for name, content in mutations(whole, 100):
        path.write_bytes(content)
        try:
            state = checkpoint.load(path)
        except BadCheckpoint:
            refused += 1
        else:
            assert (state["run"], state["history"]) == ("r1", [{"epoch": 1}]), name
            assert torch.equal(state["student"]["w"], torch.arange(6.0)), name
    assert refused > 30


# --- the one before --------------------------------------------------------------------------------------------------


def advance(path: Path, epoch: int, run: str = "r1") -> bytes:
    """Write the checkpoint of an epoch as a run does."""
    checkpoint.step_back(path)
    checkpoint.save(path, {"run": run, "history": [{"epoch": n + 1} for n in range(epoch)]})
    return path.read_bytes()


def epochs(found: checkpoint.Recovered) -> int | None:
    return None if found.state is None else len(found.state["history"])


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a run's checkpoints are, of which there are two."""
    path = tmp_path / "run" / "checkpoint.pt"
    for epoch in (1, 2, 3):
        advance(path, epoch)
    return path


def test_the_newest_checkpoint_is_taken_and_the_one_before_kept(place: Path) -> None:
    assert names(place) == ["checkpoint.previous.pt", "checkpoint.pt"]
    found = checkpoint.recover(place, "r1")
    assert (epochs(found), found.bad) == (3, ())
    assert epochs(checkpoint.Recovered(checkpoint.load(checkpoint.previous(place)), ())) == 2


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert checkpoint.recover(tmp_path / "none" / "checkpoint.pt", "r1") == checkpoint.Recovered(None, ())


def test_a_kill_between_the_two_moves_loses_one_epoch(place: Path) -> None:
    checkpoint.step_back(place)
    assert names(place) == ["checkpoint.previous.pt"]
    found = checkpoint.recover(place, "r1")
    assert (epochs(found), found.bad) == (3, ())
    advance(place, 4)
    assert epochs(checkpoint.recover(place, "r1")) == 4
    assert names(place) == ["checkpoint.previous.pt", "checkpoint.pt"]


def bad_files() -> dict[str, bytes]:
    whole = saved({"run": "r1", "history": [{"epoch": 1}], "w": torch.arange(6.0)})
    flipped = bytearray(whole)
    flipped[whole.index(torch.arange(6.0).numpy().tobytes()) + 9] ^= 1
    return {
        "cut short": whole[: len(whole) // 2],
        "empty": b"",
        "flipped bit": bytes(flipped),
        "zeros": bytes(len(whole)),
        "another run's": saved({"run": "r2", "history": [{"epoch": 1}]}),
        "no checkpoint": saved({"model": {"w": torch.zeros(2)}}),
    }


@pytest.mark.parametrize("case", bad_files())
def test_a_bad_checkpoint_is_set_aside_for_the_one_before(case: str, place: Path) -> None:
    bad = bad_files()[case]
    place.write_bytes(bad)
    found = checkpoint.recover(place, "r1")
    assert epochs(found) == 2
    (sentence,) = found.bad
    assert sentence.startswith(str(place))
    assert sentence.endswith("it was set aside as checkpoint.pt.corrupt")
    assert names(place) == ["checkpoint.previous.pt", "checkpoint.pt.corrupt"]
    assert place.with_name("checkpoint.pt.corrupt").read_bytes() == bad
    advance(place, 3)
    assert (epochs(checkpoint.recover(place, "r1"))) == 3


@pytest.mark.parametrize("case", bad_files())
def test_two_bad_checkpoints_are_set_aside_both(case: str, place: Path) -> None:
    for file in (place, checkpoint.previous(place)):
        file.write_bytes(bad_files()[case])
    found = checkpoint.recover(place, "r1")
    assert found.state is None
    assert len(found.bad) == 2
    assert names(place) == ["checkpoint.previous.pt.corrupt", "checkpoint.pt.corrupt"]


def test_what_was_set_aside_before_is_kept(place: Path) -> None:
    for epoch, content in ((3, b"first"), (3, b"second")):
        advance(place, epoch)
        place.write_bytes(content)
        checkpoint.recover(place, "r1")
    kept = [place.with_name(f"checkpoint.pt.corrupt{number}").read_bytes() for number in ("", "-2")]
    assert kept == [b"first", b"second"]


def test_whoever_asks_may_do_the_moving(place: Path) -> None:
    moved = []

    def move(file: Path) -> Path:
        moved.append(file)
        return file.rename(file.with_name("elsewhere"))

    place.write_bytes(b"")
    assert checkpoint.recover(place, "r1", move=move).bad[0].endswith("set aside as elsewhere")
    assert moved == [place]


@pytest.mark.parametrize(
    ("word", "told"),
    [("position", "position"), ("bad_alloc", "bad_alloc"), ("\x1b[31m", r"\x1b[31m")],
    ids=["any", "what torch says when memory runs out", "a terminal's"],
)
def test_a_checkpoint_is_bad_that_cannot_be_used(word: str, told: str, place: Path) -> None:
    def use(state: dict[str, Any]) -> None:
        if len(state["history"]) == 3:
            raise TypeError(f"there is no {word}")

    found = checkpoint.recover(place, "r1", use=use)
    assert epochs(found) == 2
    assert f"TypeError: there is no {told}" in found.bad[0]
    assert found.bad[0].startswith(f"{place} does not fit its run: ")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no room for 1 GiB")])
def test_a_lack_of_memory_is_no_fault_of_a_checkpoint(error: Exception, place: Path) -> None:
    def use(state: dict[str, Any]) -> None:
        raise error

    with pytest.raises(type(error)):
        checkpoint.recover(place, "r1", use=use)
    assert names(place) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_older_ones_are_looked_at_last_and_stay(place: Path) -> None:
    older = [place.with_name(f"main-{epoch}.pt") for epoch in (3, 2, 1)]
    for file, content in zip(older[1:], (b"", place.read_bytes()), strict=True):
        file.write_bytes(content)
    assert checkpoint.recover(place, "r1", older=older).bad == ()
    place.write_bytes(b"")
    checkpoint.previous(place).write_bytes(b"")
    found = checkpoint.recover(place, "r1", older=older)
    assert epochs(found) == 3
    assert [sentence.endswith("corrupt") for sentence in found.bad] == [True, True, False]
    assert names(place) == ["checkpoint.previous.pt.corrupt", "checkpoint.pt.corrupt", "main-1.pt", "main-2.pt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_that_may_not_be_read_is_not_given_up(place: Path) -> None:
    place.chmod(0)
    with pytest.raises(NoAccess, match="Permission denied"):
        checkpoint.recover(place, "r1")
    assert names(place) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_a_checkpoint_that_cannot_be_opened_is_not_given_up(place: Path) -> None:
    place.unlink()
    place.mkdir()
    with pytest.raises(NoAccess):
        checkpoint.recover(place, "r1")
    assert names(place) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_both_are_discarded(place: Path) -> None:
    checkpoint.discard(place)
    assert names(place) == []
    checkpoint.discard(place)


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_its_run_fits(tmp_path: Path) -> None:
    for row in ("kd", "crd"):
        fresh = member(row, task(), teacher()).state()
        checkpoint.save(tmp_path / "c.pt", fresh)
        assert checkpoint.load(tmp_path / "c.pt", fresh)["run"] == fresh["run"]


def test_tensors_of_other_shapes_or_types_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    fresh = {"student": {"w": torch.zeros(2, 3)}, "method": {"bank": torch.zeros(4), "_extra_state": {"a": 1}}}
    good = {"run": "r1", "history": [], "student": {"w": torch.ones(2, 3)}, "method": {"bank": torch.ones(4)}}
    checkpoint.save(path, good)
    assert checkpoint.load(path, fresh)["student"]["w"].sum() == 6
    for changes in (
        {"student": {"w": torch.ones(3, 2)}},
        {"student": {"w": torch.ones(2, 3, dtype=torch.float64)}},
        {"student": {"v": torch.ones(2, 3)}},
        {"student": {"w": torch.ones(2, 3), "v": torch.ones(2)}},
        {"student": None},
        {"method": {"bank": torch.ones(5)}},
        {"method": {"bank": 4}},
    ):
        checkpoint.save(path, good | changes)
        with pytest.raises(BadCheckpoint, match=r"does not fit its run|has no student"):
            checkpoint.load(path, fresh)
    path.write_bytes(forged({"history": [], "student": {"w": Claim((2**40,), (0,))}}))
    with pytest.raises(BadCheckpoint):
        checkpoint.load(path, fresh)


class _Interrupted(io.BytesIO):
    """A file in the course of whose writing the user presses Ctrl-C."""

    def write(self, content: Any) -> int:
        if self.tell():
            raise KeyboardInterrupt
        return super().write(content)


def test_an_interruption_stays_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch's writer says something else when it cannot end its file."""
    monkeypatch.setattr(checkpoint, "written_whole", lambda path: nullcontext(_Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "checkpoint.pt", {"tensors": [torch.zeros(1000) for _ in range(9)]})
