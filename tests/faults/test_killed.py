"""A grid whose command is killed anywhere, again and again, ends as if nothing had happened."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import epochs_in, runs_in, students_in
from tests.faults.forks import Forks
from tests.faults.grid import CHAIN, FULL, Undisturbed, kill_at, kill_where, random_moments
from tests.faults.landing import Landing, summary, table
from tests.faults.points import ARTIFACTS, GRID

SEED = 20

#: Shows landings under a title.
Tell = Callable[[str, list[Landing]], None]


@pytest.fixture(scope="module")
def full(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.trained(forks, FULL, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def chain(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.trained(forks, CHAIN, tmp_path_factory.mktemp("chain"))


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Has landings shown at the end of all tests."""
    return lambda title, landings: record_property("told", f"{title}\n\n{table(landings)}\n\n{summary(landings)}\n")


def test_killed_at_a_few_random_moments(full: Undisturbed, tmp_path: Path) -> None:
    landings = kill_at(random_moments(5, SEED, full), full, tmp_path)
    assert any(landing.in_training for landing in landings), table(landings)


def test_killed_at_every_chosen_point_in_turn(full: Undisturbed, tmp_path: Path) -> None:
    kill_where(GRID, full, tmp_path)


def test_killed_while_artifacts_are_made(chain: Undisturbed, tmp_path: Path) -> None:
    kill_where(ARTIFACTS, chain, tmp_path)


def test_what_others_start_from_is_kept_until_they_are_done(forks: Forks, chain: Undisturbed, tmp_path: Path) -> None:
    """Though no weights are asked for, and the command is killed when those are there and are needed next."""
    grid = chain.again(tmp_path / "grid")
    words = (*CHAIN, "--keep", "none")
    killed = forks.run(grid.folder, *words, fault="an artifact is read")
    assert killed.code == -signal.SIGKILL, killed.err
    done = {run_id for run_id, run in runs_in(grid.results).items() if run["status"] == "done"}
    assert len(done) == 2
    assert students_in(grid.results).keys() == done
    again = forks.run(grid.folder, *words)
    assert again.code == 0, again.err
    assert epochs_in(grid.results) == epochs_in(chain.results)
    assert {run["row"] for run in runs_in(grid.results).values() if run["kept"] == "none"} == {"dih", "takd"}
    assert students_in(grid.results).keys() == done, "nobody starts from the others"


@pytest.mark.slow
def test_killed_at_fifty_random_moments(full: Undisturbed, tmp_path: Path, tell: Tell) -> None:
    landings = kill_at(random_moments(50, SEED, full), full, tmp_path)
    tell("Kills at random moments", landings)
    assert sum(landing.in_training for landing in landings) >= 30, table(landings)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_of_a_chain(chain: Undisturbed, tmp_path: Path, tell: Tell) -> None:
    tell("Kills at random moments of a chain", kill_at(random_moments(20, SEED, chain), chain, tmp_path))


@pytest.mark.slow
def test_killed_at_each_chosen_point_alone(full: Undisturbed, chain: Undisturbed, tmp_path: Path, tell: Tell) -> None:
    landings: list[Landing] = []
    for undisturbed, points in ((full, GRID), (chain, ARTIFACTS)):
        for point in points:
            (tmp_path / str(len(landings))).mkdir()
            landings += kill_where([point], undisturbed, tmp_path / str(len(landings)))
    tell("Kills at chosen points", landings)
