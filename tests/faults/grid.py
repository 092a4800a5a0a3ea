"""Real grids of runs, and what is left of them by commands that are killed or come into trouble."""

import random
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kdtable.store import NoStore, Store
from kdtable.store.maintenance.checking import check
from tests.cli.command import (
    SMALL,
    SMALL_CRD,
    TEACHER,
    Done,
    assert_same_numbers,
    listing,
    runs_in,
    write_images,
    write_teacher,
)
from tests.faults.forks import Forks
from tests.faults.landing import Landing, progress

_PAIR = ("run", "--pairs", "resnet14:resnet8", "--epochs", "2", *SMALL, *TEACHER)

#: Ten runs in two cohorts: with and without a teacher, with draws of its own, with a stage before the main one.
FULL = (*_PAIR, "--methods", "vanilla,kd,crd,fitnet-2stage,ab", "--seeds", "2", *SMALL_CRD)
#: Two runs that need artifacts, and the two that make these: a teacher's heads, and an assistant.
CHAIN = (*_PAIR, "--paper", "dih", "--methods", "dih,takd", "--seeds", "1", "--set", "assistant=resnet8")
#: Six runs in two cohorts.
LITTLE = (*_PAIR, "--methods", "vanilla,kd,crd", "--seeds", "2", *SMALL_CRD)


@dataclass(frozen=True)
class Undisturbed:
    """A grid that nothing befell: a folder with all that it needs, and its results in ``undisturbed``.

    Attributes:
        forks: start its commands.
        words: its command.
        folder: where it is.
        lead: seconds from its start to its first step.
        training: seconds from that to the end of its last epoch.
    """

    forks: Forks
    words: tuple[str, ...]
    folder: Path
    lead: float
    training: float

    @classmethod
    def trained(cls, forks: Forks, words: tuple[str, ...], folder: Path) -> "Undisturbed":
        write_images(folder / "tiny.npz", train=32, test=8)
        write_teacher(folder / "resnet14.pth")
        started = time.monotonic()
        command = forks.start(folder, *words, "--results", "undisturbed")
        command.comes_to_train()
        begun = last = time.monotonic()
        while not command.ended:
            last = time.monotonic() if command.trains else last
            time.sleep(0.002)
        done = command.finish()
        assert done.code == 0, done.err
        return cls(forks, words, folder, begun - started, last - begun)

    @property
    def results(self) -> Path:
        return self.folder / "undisturbed"

    def again(self, folder: Path) -> "Disturbed":
        """The grid in a folder of its own, with nothing trained yet."""
        folder.mkdir()
        for name in ("tiny.npz", "resnet14.pth"):
            shutil.copy(self.folder / name, folder)
        return Disturbed(self, folder)


@dataclass(frozen=True)
class Disturbed:
    """The same grid in another folder, whose commands are disturbed one after another."""

    undisturbed: Undisturbed
    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def run(self, fault: str | None = None) -> Done:
        """Call the command; ``fault`` names what befalls it."""
        return self.undisturbed.forks.run(self.folder, *self.undisturbed.words, fault=fault)

    def kill_after(self, seconds: float) -> Landing | None:
        """Start the command, and kill it so long after it began to train; ``None`` if it had ended by then.

        Below zero it is as long before, as far as the undisturbed command can tell.
        """
        command = self.undisturbed.forks.start(self.folder, *self.undisturbed.words)
        if seconds < 0:
            command.ends_within(self.undisturbed.lead + seconds)
        elif command.comes_to_train():
            command.ends_within(seconds)
        command.kill()
        done = command.finish()
        if done.code != -signal.SIGKILL:
            assert done.code == 0, done.err
            return None
        return Landing(f"{seconds:+.2f} s", command.trail, *progress(self.results))

    def kill_where(self, point: str) -> Landing:
        """Start the command, which kills itself at a chosen point."""
        words = self.undisturbed.words
        command = self.undisturbed.forks.start(self.folder, *words, fault=point, KDTABLE_LEASE="1")
        done = command.finish()
        assert done.code == -signal.SIGKILL, f"'{point}' was not reached ({done.code}):\n{done.err}{done.out}"
        return Landing(point, command.trail, *progress(self.results))

    def finish(self) -> None:
        """The plain command ends the grid as if nothing had happened."""
        done = self.run()
        assert done.code == 0, done.err
        self.assert_as_undisturbed()

    def assert_as_undisturbed(self) -> None:
        """Equal runs, each of them once and done, and no file more or less."""
        expected = self.undisturbed.results
        assert_same_numbers(self.results, expected)
        assert {run["status"] for run in runs_in(self.results).values()} == {"done"}
        with closing(Store(self.results, create=False)) as store:
            ids = [run.id for run in store.runs()]
            assert list(check(store)) == []
        assert sorted(ids) == sorted(runs_in(expected))
        assert _files(self.results) == _files(expected)


def _files(results: Path) -> set[str]:
    """All names below a folder, but for SQLite's log.

    Two connections that close at one moment may each leave it to the other (it stayed in a seventh of 3,000 tries with
    two threads), and the next one takes it up.
    """
    return {name for name in listing(results) if not name.endswith(("-wal", "-shm"))}


def assert_intact(results: Path) -> None:
    """The store is whole, but for what a killed process had no time to remove."""
    remains = ("half-written", "continues nothing")
    with suppress(NoStore), closing(Store(results, create=False)) as store:
        assert [found for found in check(store) if not any(text in found.what for text in remains)] == []


def random_moments(count: int, seed: int, undisturbed: Undisturbed) -> list[float]:
    """As many moments in random order, in seconds from the first step: a tenth before it, the others spread after it.

    They are shares of the time in which students are trained, since what a command does before and after that takes
    as long for a grid of one minute as for one of a month.
    """
    draw = random.Random(seed)
    early = max(1, count // 10)
    before = [-(number + draw.random()) / early * undisturbed.lead for number in range(early)]
    after = [(number + draw.random()) / (count - early) * undisturbed.training for number in range(count - early)]
    moments = before + after
    draw.shuffle(moments)
    return moments


def kill_at(moments: Iterable[float], undisturbed: Undisturbed, folder: Path) -> list[Landing]:
    """Kill a grid's command at each of the moments, counted from its first step; when one is done, another is begun.

    A moment at which the command had ended already comes again, and a little earlier, should the machine be quicker
    now than when the undisturbed grid was trained.
    """
    folders = (folder / f"grid{number}" for number in count(1))
    landings = []
    grid = undisturbed.again(next(folders))
    for moment in moments:
        earlier = count(20)
        while (landing := grid.kill_after(moment * 20 / next(earlier))) is None:
            grid.assert_as_undisturbed()
            grid = undisturbed.again(next(folders))
        assert_intact(grid.results)
        landings.append(landing)
    grid.finish()
    return landings


def kill_where(points: Iterable[str], undisturbed: Undisturbed, folder: Path) -> list[Landing]:
    """Kill the command of one grid at each of the points in turn."""
    grid = undisturbed.again(folder / "grid")
    landings = []
    for point in points:
        landings.append(grid.kill_where(point))
        assert_intact(grid.results)
    grid.finish()
    return landings
