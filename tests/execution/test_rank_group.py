"""Ranks that fail: the command says why, at once, and goes on from the last checkpoint."""

import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pipe, active_children
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kdtable.errors import BadRequest, Trouble
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends import rank_group
from kdtable.execution.backends.processes import Remote
from kdtable.execution.backends.rank_group import Failure, RankGroup
from kdtable.execution.ranks import ProcessGroup
from kdtable.execution.run_grid import Outcome
from kdtable.execution.train_cohort import on_cpu
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.run import Sharding
from tests.cli.command import assert_same_numbers, runs_in
from tests.execution.grids import Heard, plan, train, write_grid

# --- real ranks --------------------------------------------------------------------------------------------------

GROUP = ProcessGroup(("cpu", "cpu"), 2)

#: Far above what it takes to hear of a failure, far below what a rank waits for another one.
SOON = 120

TRAIN = rank_group._train


def fail_on_rank_1(error: Exception, members: int, *arguments: Any) -> None:
    """What a rank does, but for rank 1 with so many members at the end of their first epoch."""
    from kdtable.training.cohort import Cohort

    epoch = Cohort._epoch

    def failing(cohort: Cohort, *rest: Any) -> None:
        if cohort.ranks.rank == 1 and len(cohort.members) >= members and cohort.members[0].epoch == 1:
            raise error
        epoch(cohort, *rest)

    Cohort._epoch = failing  # type: ignore[method-assign]
    TRAIN(*arguments)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_grid(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(_plan(), Path("results"), process_group=GROUP) == Outcome(2, 0, 0)
    return folder


def _plan() -> tuple[PlannedRun, ...]:
    return tuple(replace(planned, run=replace(planned.run, sharding=Sharding(devices=2))) for planned in plan([1]))


def test_a_rank_that_fails_ends_the_command_which_goes_on_when_called_again(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(rank_group, "_train", partial(fail_on_rank_1, ValueError("bad\nluck"), 1))
        with pytest.raises(Trouble) as raised:
            train(_plan(), Path("again"), process_group=GROUP)
    assert time.monotonic() - started < SOON
    assert str(raised.value) == (
        "rank 1 failed (ValueError: bad): finished epochs are kept; see to that, and call again to go on"
    )
    heard = Heard()
    assert train(_plan(), Path("again"), heard, process_group=GROUP) == Outcome(2, 0, 0)
    assert {record.epoch for _, record in heard.of("epoch")} == {2}, "it goes on"
    assert_same_numbers(Path("again"), Path("results"))


def test_where_memory_runs_out_the_group_starts_again_with_half_the_cohort(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    monkeypatch.setattr(rank_group, "_train", partial(fail_on_rank_1, torch.OutOfMemoryError("not one byte"), 2))
    heard = Heard()
    assert train(_plan(), Path("halves"), heard, process_group=GROUP) == Outcome(2, 0, 0)
    assert heard.of("note") == [
        [
            "memory ran out on rank 1 with 2 runs together, so they go on in cohorts of at most 1 "
            "(OutOfMemory: not one byte)"
        ]
    ]
    assert [len(runs) for _, runs, _ in heard.of("cohort")] == [2, 1, 1]
    assert_same_numbers(Path("halves"), Path("results"))


class Impatient(Heard):
    """A user who presses Ctrl-C when the first epoch is told."""

    def epoch(self, *_: Any) -> None:
        raise KeyboardInterrupt


def test_an_interruption_ends_all_ranks_and_releases_their_runs(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(undisturbed)
    with pytest.raises(KeyboardInterrupt):
        train(_plan(), Path("interrupted"), Impatient(), process_group=GROUP)
    assert active_children() == []
    runs = runs_in(Path("interrupted")).values()
    assert {(run["status"], run["claimed_by"]) for run in runs} == {("planned", None)}


# --- what the command makes of what ranks tell ------------------------------------------------------------------


@dataclass
class Process:
    """A rank's process, as far as the command sees it."""

    exitcode: int | None = None
    pid: int | None = 7

    def join(self, seconds: float | None = None) -> None:
        pass

    def kill(self) -> None:
        pass

    terminate = kill


class Group(RankGroup):
    """Three ranks, whose ends of the links are the test's."""

    def __init__(self) -> None:
        super().__init__(("cpu",) * 3)
        self.processes = [Process() for _ in range(3)]
        self.theirs: list[Connection] = []
        self.starts: list[int | None] = []

    def _start(self) -> None:
        links = [Pipe() for _ in self.processes]
        self._ranks = {ours: process for (ours, _), process in zip(links, self.processes, strict=True)}  # type: ignore[misc]
        self._links = list(self._ranks)
        self.theirs = [theirs for _, theirs in links]
        self._together = 0
        self.starts.append(self._assignment.at_most)

    def die(self, rank: int, code: int) -> None:
        self.processes[rank].exitcode = code
        self.theirs[rank].close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def group(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> Group:
    monkeypatch.setattr(rank_group, "SETTLING", 0.1)
    group = Group()
    group.submit(Assignment((), Path("results"), Path("data"), None, "last"), heard)
    return group


def failed(group: Group, rank: int, *what: Any) -> None:
    Remote(group.theirs[rank]).send("failed rank", Failure(*what))


def test_the_end_of_all_ranks_is_the_end_of_the_worker(group: Group) -> None:
    Remote(group.theirs[0]).note("look")
    for rank in range(3):
        assert group.wait(1) is None
        group.die(rank, 0)
    ends = [group.wait(1) for _ in range(3)]
    assert [end for end in ends if end] != []
    assert group._links == []


def test_the_rank_that_failed_first_is_named(group: Group) -> None:
    failed(group, 0, 12.5, "RuntimeError: connection closed by peer")
    failed(group, 2, 12.0, "ValueError: bad luck")
    with pytest.raises(Trouble, match=r"^rank 2 failed \(ValueError: bad luck\): finished epochs are kept"):
        group.wait(1)


def test_a_rank_that_was_killed_says_nothing_and_is_why_others_fail(group: Group) -> None:
    failed(group, 0, 12.5, "RuntimeError: connection closed by peer")
    group.die(1, -signal.SIGKILL)
    with pytest.raises(Trouble, match=r"^rank 1 failed \(process 7 was killed by SIGKILL \(the system may"):
        group.wait(1)


def test_what_a_rank_says_in_a_sentence_is_said(group: Group) -> None:
    failed(group, 1, 1.0, "", False, BadRequest("the data is gone"))
    with pytest.raises(BadRequest, match=r"^the data is gone$"):
        group.wait(1)


def test_the_cohort_is_halved_until_one_run_is_left(group: Group, heard: Heard) -> None:
    for runs in (5, 2):
        Remote(group.theirs[0]).cohort(0, [None] * runs, None)  # type: ignore[list-item]
        failed(group, 1, 1.0, "memory ran out", True)
        while len(group.starts) == 1 if runs == 5 else len(group.starts) == 2:
            assert group.wait(1) is None
    assert group.starts == [None, 2, 1]
    Remote(group.theirs[0]).cohort(0, [None], None)  # type: ignore[list-item]
    assert group.wait(1) is None
    failed(group, 1, 1.0, "memory ran out", True)
    with pytest.raises(Trouble, match=r"^rank 1 failed \(memory ran out\)"):
        group.wait(1)
    assert len(heard.of("note")) == 2


def test_memory_that_runs_out_before_a_cohort_begins_is_not_tried_again(group: Group) -> None:
    failed(group, 0, 1.0, "memory ran out", True)
    with pytest.raises(Trouble, match=r"^rank 0 failed"):
        group.wait(1)
    assert group.starts == [None]


def test_what_rank_0_sends_lies_on_the_cpu() -> None:
    """A pickled CUDA tensor would appear on rank 0's GPU in every process."""
    with FakeTensorMode():
        state = {"student": {"weight": torch.empty(2, device="cuda:1")}, "history": [{"epoch": 1}], "epoch": 1}
        sent = on_cpu(state)
    assert sent is not None
    assert sent["student"]["weight"].device.type == "cpu"
    assert (sent["history"], sent["epoch"]) == ([{"epoch": 1}], 1)
    assert on_cpu(None) is None
