"""Where workers compute, what they tell, and who hears Ctrl-C."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from kdtable.errors import BadRequest, Trouble
from kdtable.execution import devices, interruptions
from kdtable.execution.backends import processes
from kdtable.execution.backends.processes import Listener, Processes, Remote
from kdtable.execution.devices import DeviceSlot, device_slots, records_steps
from kdtable.hardware import core_groups, divided
from tests.cli.command import interruptible

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MANY = 100


# --- places ------------------------------------------------------------------------------------------------------


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "own_cores", lambda: {9, 1, 2, 3, 4, 5, 6, 0})


def _described(folder: Path, shared: dict[int, str], level: int = 3) -> Path:
    """A folder as Linux describes cores: their own caches, and one that they share as ``shared`` says."""
    for core, text in shared.items():
        for index, (depth, sharers) in enumerate([(1, f"{core}"), (1, f"{core}"), (2, f"{core}"), (level, text)]):
            cache = folder / f"cpu{core}" / "cache" / f"index{index}"
            cache.mkdir(parents=True)
            (cache / "level").write_text(f"{depth}\n")
            (cache / "shared_cpu_list").write_text(f"{sharers}\n")
    return folder


@pytest.mark.parametrize(
    ("count", "parts", "sizes"),
    [(8, 2, [4, 4]), (8, 1, [8]), (8, 8, [1] * 8), (7, 2, [3, 4]), (5, 4, [1, 1, 1, 2]), (64, 3, [21, 21, 22])],
)
def test_divided(count: int, parts: int, sizes: list[int]) -> None:
    cores = list(range(10, 10 + count))
    found = divided(cores, parts)
    assert [len(part) for part in found] == sizes
    assert [core for part in found for core in part] == cores


def test_core_groups(tmp_path: Path) -> None:
    described = _described(tmp_path, {0: "0-1,4-5", 1: "0-1,4-5", 2: "2-3", 3: "2-3", 4: "0-1,4-5", 5: "0-1,4-5"})
    assert core_groups([0, 1, 2, 3, 4, 5], described) == [[0, 1, 4, 5], [2, 3]]
    assert core_groups([1, 3], described) == [[1], [3]]


def test_caches_of_which_the_last_is_not_seen_make_no_groups(tmp_path: Path) -> None:
    described = _described(tmp_path, {core: f"{core}" for core in range(4)}, level=2)
    assert core_groups([0, 1, 2, 3], described) == [[0, 1, 2, 3]]
    assert core_groups([0, 1, 2, 3], tmp_path / "none") == [[0, 1, 2, 3]]


@pytest.mark.usefixtures("eight_cores")
def test_a_number_divides_the_cores() -> None:
    assert device_slots("3", CPU, MANY) == [
        DeviceSlot("cpu", (0, 1), 3),
        DeviceSlot("cpu", (2, 3, 4), 3),
        DeviceSlot("cpu", (5, 6, 9), 3),
    ]
    assert device_slots("1", CPU, MANY) == [DeviceSlot("cpu", (0, 1, 2, 3, 4, 5, 6, 9), 1)]


@pytest.mark.usefixtures("eight_cores")
def test_auto_is_one_per_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "core_groups", lambda cores: [cores[:5], cores[5:]])
    assert [slot.cores for slot in device_slots("auto", CPU, MANY)] == [(0, 1, 2, 3, 4), (5, 6, 9)]
    assert device_slots("auto", CPU, 1) == device_slots("1", CPU, MANY)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("jobs_asked", ["8", "auto"])
def test_there_are_no_more_workers_than_cohorts_and_these_have_all_cores(
    jobs_asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "core_groups", lambda cores: [[core] for core in cores])
    assert [slot.cores for slot in device_slots(jobs_asked, CPU, 2)] == [(0, 1, 2, 3), (4, 5, 6, 9)]
    assert len(device_slots(jobs_asked, CPU, 0)) == 1


@pytest.mark.usefixtures("eight_cores")
def test_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    auto = device_slots("auto", CUDA, MANY)
    assert [(slot.device, slot.cores, slot.sharers) for slot in auto] == [
        ("cuda:0", (0, 1), 1),
        ("cuda:1", (2, 3, 4), 1),
        ("cuda:2", (5, 6, 9), 1),
    ]
    assert [(slot.device, slot.sharers) for slot in device_slots("4", CUDA, MANY)] == [
        ("cuda:0", 2),
        ("cuda:1", 1),
        ("cuda:2", 1),
        ("cuda:0", 2),
    ]
    assert {(slot.device, slot.sharers) for slot in device_slots("2", torch.device("cuda:2"), MANY)} == {("cuda:2", 2)}


def test_steps_are_recorded_only_where_that_is_asked_for() -> None:
    assert records_steps("on", "bf16", CUDA, 1)
    assert not any(records_steps(choice, "fp32", CUDA, 1) for choice in ("auto", "off"))
    assert not any(records_steps(choice, "fp16", CPU, 2) for choice in ("auto", "off"))


@pytest.mark.parametrize(
    ("choice", "precision", "device", "ranks", "said"),
    [
        ("maybe", "fp32", CUDA, 1, "--cuda-graphs is one of auto, on, off, not 'maybe'"),
        ("on", "fp32", CPU, 1, "--cuda-graphs on needs a CUDA device, and this is cpu: leave it out"),
        ("on", "fp16-cached", CUDA, 1, "does not go with fp16, .*: use bf16"),
        ("on", "fp32", CUDA, 2, "is for runs on one device: .* leave out --devices"),
    ],
)
def test_steps_that_cannot_be_recorded_are_refused(
    choice: str, precision: str, device: torch.device, ranks: int, said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        records_steps(choice, precision, device, ranks)
    assert [slot.device for slot in device_slots("auto", torch.device("cuda:1"), MANY)] == ["cuda:1"]


def test_more_devices_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(devices, "own_cores", lambda: {0, 1})
    assert [slot.device for slot in device_slots("auto", CUDA, MANY)] == ["cuda:0", "cuda:1"]


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "²", "Auto"])
def test_what_is_no_number_of_jobs(text: str) -> None:
    with pytest.raises(BadRequest, match=f"^--jobs takes a number of worker processes or auto, not '{text}'$"):
        device_slots(text, CPU, MANY)


@pytest.mark.usefixtures("eight_cores")
def test_more_jobs_than_cores() -> None:
    with pytest.raises(BadRequest, match=r"^--jobs 9 is more than the 8 cores that may be used here$"):
        device_slots("9", CPU, MANY)


# --- what workers tell -------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """A worker process that has ended."""

    pid: int
    exitcode: int | None

    def join(self) -> None:
        pass


class Heard:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def _listen(workers: Sequence[tuple[Connection, Ended]]) -> tuple[list[tuple[Any, ...]], list[str | None]]:
    """What is passed on of what workers tell until all have ended, and how each of them ended."""
    heard, backend, reasons = Heard(), Processes([]), []
    backend._started, backend._links = dict(workers), [link for link, _ in workers]  # type: ignore[arg-type]
    backend._listener = Listener(heard)  # type: ignore[arg-type]
    while backend._links:
        if ended := backend.wait(1):
            reasons.append(ended.reason)
    return heard.calls, reasons


def test_what_workers_tell_is_passed_on() -> None:
    (one, its), (two, other) = Pipe(), Pipe()
    for link in (its, other):
        Remote(link).started(10)
    Remote(its).stepped(["a", "b"], 16)
    Remote(its).reached("a", 5)
    Remote(its).waiting(1, ["here"])
    Remote(its).note("look")
    for link in (its, other):
        link.close()
    calls, reasons = _listen([(one, Ended(1, 0)), (two, Ended(2, 0))])
    assert reasons == [None, None]
    assert calls.count(("started", 10)) == 1, "each counts the whole request"
    assert [call for call in calls if call[0] != "started"] == [
        ("stepped", ["a", "b"], 16),
        ("reached", "a", 5),
        ("note", "look"),
    ]


@pytest.mark.parametrize("sent", [0, 3, 20], ids=lambda sent: f"{sent} bytes of a message")
def test_a_worker_that_is_killed_while_it_tells_something(sent: int) -> None:
    (one, its), (two, other) = Pipe(), Pipe()
    message = pickle.dumps(("note", ("never whole" * 10,)))
    os.write(its.fileno(), (len(message).to_bytes(4, "big") + message)[:sent])
    its.close()
    Remote(other).note("alive")
    other.close()
    calls, reasons = _listen([(one, Ended(11, -signal.SIGKILL)), (two, Ended(12, 0))])
    assert calls == [("note", "alive")]
    assert set(reasons) == {None, "process 11 was killed by SIGKILL (the system may have run out of memory)"}


def test_a_worker_that_ends_with_an_exit_code() -> None:
    ours, its = Pipe()
    its.close()
    assert _listen([(ours, Ended(11, 3))]) == ([], ["process 11 ended with exit code 3"])


@pytest.mark.parametrize(
    "error", [BadRequest("the data is gone"), Trouble("the disk is full"), FileNotFoundError(2, "gone", "tiny.npz")]
)
def test_what_makes_a_worker_give_up_is_raised(error: BadRequest | OSError) -> None:
    ours, its = Pipe()
    Remote(its).gave_up(error)
    with pytest.raises(type(error)) as raised:
        _listen([(ours, Ended(11, 0))])
    assert str(raised.value) == str(error)


def test_a_worker_whom_nobody_hears_ends_as_if_interrupted() -> None:
    ours, its = Pipe()
    ours.close()
    with pytest.raises(KeyboardInterrupt):
        Remote(its).note("hello?")
    with pytest.raises(KeyboardInterrupt):
        Remote(its).assignment()


# --- Ctrl-C ------------------------------------------------------------------------------------------------------

DEAF = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"


def test_processes_that_are_started_deaf_stay_so_and_nothing_is_lost() -> None:
    answers = []

    def start_one_while_the_user_presses_ctrl_c() -> None:
        with interruptions.deaf_to_interruptions():
            signal.raise_signal(signal.SIGINT)
            child = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True, check=True)
            answers.append(child.stdout.strip())

    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            start_one_while_the_user_presses_ctrl_c()
        assert answers == ["True"]
        with interruptions.deaf_to_interruptions():
            answers.append("nobody pressed anything")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(answers) == 2
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


FIRST = """
import multiprocessing, signal

def told():
    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))

if __name__ == "__main__":
    from kdtable.execution.interruptions import deaf_to_interruptions
    child = multiprocessing.get_context("spawn").Process(target=told)
    with deaf_to_interruptions():
        child.start()
    child.join()
"""


def test_the_first_process_of_all_is_deaf_too(tmp_path: Path) -> None:
    """With it Python starts a process of its own, and unblocks the signal by that."""
    (tmp_path / "first.py").write_text(FIRST)
    done = subprocess.run([sys.executable, tmp_path / "first.py"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_worker_is_interrupted_only_once() -> None:
    before = signal.signal(signal.SIGTERM, processes._interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interruption_amid_a_callback_comes_again() -> None:
    """Python drops an exception of a callback, such as the end of an object."""
    program = """
import signal, sys, time
from kdtable.execution.backends import processes

class Ending:
    def __del__(self):
        raise KeyboardInterrupt

signal.signal(signal.SIGTERM, processes._interrupt)
sys.unraisablehook = processes._interrupt_again
Ending()
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("heard")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("heard\n", "", 0)
