"""Whether another process lives: seen on this machine, judged by its silence elsewhere."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtable.errors import BadRequest
from kdtable.store.liveness import LEASE, Process, Pulse, Watch, lease, own_process
from tests.store.samples import ME, Clock

FAR = Process("far", "elsewhere", 7, "1")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_this_process_lives() -> None:
    me = own_process(os.getpid())
    assert not me.gone
    assert me.started
    assert me.pid == os.getpid()
    assert replace(me, started="1").gone, "another process has its number now"


def test_a_process_that_ended(sleeper: subprocess.Popen[bytes]) -> None:
    other = own_process(sleeper.pid)
    assert not other.gone
    sleeper.kill()
    sleeper.wait()
    assert other.gone


def test_a_killed_process_that_nobody_has_waited_for(sleeper: subprocess.Popen[bytes]) -> None:
    other = own_process(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert other.gone, "a zombie trains nothing"


def test_a_stopped_process_may_go_on(sleeper: subprocess.Popen[bytes]) -> None:
    other = own_process(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
    assert not other.gone
    sleeper.send_signal(signal.SIGCONT)


def test_nothing_is_known_of_another_machines_processes() -> None:
    assert not replace(ME, machine="elsewhere", pid=2**22 + 1).gone


def test_a_process_that_cannot_be_looked_up_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> psutil.Process:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", refuse)
    assert not ME.gone


def silent_for(watch: Watch, clock: Clock, seconds: float, step: float = 1.0) -> set[str]:
    """What a watch says after looking on for some time, in which nobody beats."""
    dead: set[str] = set()
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(clock.now + step, end)
        dead = watch.dead([Pulse("w", FAR, 3)])
    return dead


def test_silence_as_long_as_the_lease_is_death() -> None:
    clock = Clock()
    watch = Watch(10.0, clock)
    assert watch.dead([Pulse("w", FAR, 3)]) == set()
    assert silent_for(watch, clock, 9.5) == set()
    assert silent_for(watch, clock, 1.0) == {"w"}


def test_a_beat_begins_the_lease_anew() -> None:
    clock = Clock()
    watch = Watch(10.0, clock)
    watch.dead([Pulse("w", FAR, 2)])
    silent_for(watch, clock, 9.5)
    clock.now += 1.0
    assert watch.dead([Pulse("w", FAR, 4)]) == set()
    watch.dead([Pulse("w", FAR, 3)])
    assert silent_for(watch, clock, 9.5) == set()
    assert silent_for(watch, clock, 1.0) == {"w"}


def test_the_dead_may_come_back() -> None:
    clock = Clock()
    watch = Watch(10.0, clock)
    watch.dead([Pulse("w", FAR, 3)])
    assert silent_for(watch, clock, 20.0) == {"w"}
    assert watch.dead([Pulse("w", FAR, 4)]) == set()


def test_time_in_which_nobody_looked_hardly_counts() -> None:
    """Whoever was suspended, perhaps with all the others, gives them time to beat again."""
    clock = Clock()
    watch = Watch(10.0, clock)
    watch.dead([Pulse("w", FAR, 3)])
    clock.now += 10_000.0
    assert watch.dead([Pulse("w", FAR, 3)]) == set()


def test_each_worker_has_its_own_silence() -> None:
    clock = Clock()
    watch = Watch(10.0, clock)
    watch.dead([Pulse("w", FAR, 3)])
    silent_for(watch, clock, 9.0)
    clock.now += 2.0
    assert watch.dead([Pulse("w", FAR, 3), Pulse("new", FAR, 0)]) == {"w"}


def test_a_process_that_ended_here_is_dead_at_once() -> None:
    assert Watch(10.0).dead([Pulse("w", replace(ME, started="1"), 3), Pulse("me", ME, 3)]) == {"w"}


@given(gaps=st.lists(st.floats(0.0, 100.0), max_size=30))
def test_a_worker_that_beats_between_looks_never_dies(gaps: list[float]) -> None:
    clock = Clock()
    watch = Watch(10.0, clock)
    for beat, gap in enumerate(gaps):
        clock.now += gap
        assert watch.dead([Pulse("w", FAR, beat)]) == set()


def test_the_lease_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDTABLE_LEASE", raising=False)
    assert lease() == LEASE
    monkeypatch.setenv("KDTABLE_LEASE", "")
    assert lease() == LEASE
    monkeypatch.setenv("KDTABLE_LEASE", "2.5")
    assert lease() == 2.5


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_an_unusable_lease(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTABLE_LEASE", text)
    with pytest.raises(BadRequest, match="KDTABLE_LEASE is a number of seconds above zero"):
        lease()
