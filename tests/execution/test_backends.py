"""A backend of another kind needs nothing but the contract; what the command makes of any backend."""

import pickle
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kdtable.errors import Trouble
from kdtable.execution import backends, run_grid
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Backend, Ended
from kdtable.execution.progress import Progress
from kdtable.execution.worker import train_assignment
from kdtable.store import Store
from tests.cli.command import assert_same_numbers, environment
from tests.execution.grids import Heard, plan, train, write_grid

WORKER = """
import pickle, sys
from pathlib import Path
from kdtable.execution.progress import Progress
from kdtable.execution.worker import train_assignment

train_assignment(pickle.loads(Path(sys.argv[1]).read_bytes()), Progress())
"""


class Cluster:
    """Workers as a cluster has them: processes of another folder that find every file under another path.

    Args:
        here: the command's folder.
        there: the same folder's name for the workers.
        folder: that they work in.
    """

    workers = 2
    tells_progress = False

    def __init__(self, here: Path, there: Path, folder: Path) -> None:
        self._here, self._there, self._folder = here, there, folder
        self._jobs: list[subprocess.Popen[bytes]] = []

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        job = self._folder / f"{len(self._jobs)}.job"
        job.write_bytes(pickle.dumps(assignment.moved(self._seen)))
        variables = environment() | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parents[2])}
        words = [sys.executable, "-c", WORKER, str(job)]
        self._jobs.append(subprocess.Popen(words, cwd=self._folder, env=variables))

    def _seen(self, path: Path) -> Path:
        return self._there / path.absolute().relative_to(self._here)

    def wait(self, seconds: float) -> Ended | None:
        for job in self._jobs:
            if job.poll() is not None:
                self._jobs.remove(job)
                return Ended(f"job ended with {job.returncode}" if job.returncode else None)
        time.sleep(0.1)
        return None

    def cancel(self) -> None:
        for job in self._jobs:
            job.kill()
            job.wait()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command's folder, in which it knows what it needs by relative paths."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_grid(folder)
    return folder


def test_workers_that_see_other_paths_and_tell_nothing_make_the_same_grid(here: Path, tmp_path: Path) -> None:
    planned_runs = plan([1, 2])
    train(planned_runs, Path("alone"))
    (tmp_path / "there").symlink_to(here)
    (tmp_path / "cluster").mkdir()
    backend: Backend = Cluster(here, tmp_path / "there", tmp_path / "cluster")
    heard = Heard()
    outcome = train(planned_runs, Path("results"), heard, backend=backend)
    assert outcome == run_grid.Outcome(4, 0, 0)
    assert_same_numbers(Path("results"), Path("alone"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster", "here", "there"]
    assert {path.suffix for path in (tmp_path / "cluster").iterdir()} == {".job"}, "all else went where it belongs"
    _assert_told_from_the_store(heard, {planned.run.id for planned in planned_runs})


def _assert_told_from_the_store(heard: Heard, ids: set[str]) -> None:
    assert heard.of("started") == [[4 * 2 * 48]]
    cohorts = heard.of("cohort")
    assert [len(runs) for _, runs, _ in cohorts] == [2, 2]
    assert [teacher for *_, teacher in cohorts] == ["resnet14"] * 2
    epochs = [(run.id, record.epoch) for run, record in heard.of("epoch")]
    assert len(set(epochs)) == len(epochs), "each is told at most once"
    assert dict(epochs) == dict.fromkeys(ids, 2), "the newest is told"
    begun = [name for name, *_ in heard.calls if name in ("cohort", "epoch")]
    assert begun[0] == "cohort"
    assert dict(heard.of("reached")) == dict.fromkeys(ids, 2 * 48)
    assert heard.of("note") == heard.of("failed") == []


def test_a_worker_may_be_given_one_cohort_of_a_request(here: Path) -> None:
    planned_runs = plan([1, 2])
    with closing(Store(Path("results"))) as store:
        store.plan([run_grid.store_row(planned) for planned in planned_runs])
        one = tuple(planned for planned in planned_runs if planned.run.seed == 2)
        train_assignment(Assignment(one, Path("results"), Path("data"), None, "last"), Heard(), "cpu")
        statuses = store.statuses(planned.run.id for planned in planned_runs)
    assert {planned.run.seed: statuses[planned.run.id] for planned in planned_runs} == {1: "planned", 2: "done"}


def test_a_moved_assignment_finds_all_files_elsewhere_and_trains_the_same_runs(here: Path) -> None:
    planned_runs = plan([1])
    assignment = Assignment(planned_runs, Path("results"), Path("data"), None, "last")
    moved = assignment.moved(lambda path: Path("/there") / path.name)
    assert (moved.results, moved.data_root) == (Path("/there/results"), Path("/there/data"))
    assert [planned.run.id for planned in moved.planned_runs] == [planned.run.id for planned in planned_runs]
    assert {planned.run.data.path for planned in moved.planned_runs} == {Path("/there/tiny.npz")}
    teachers = {planned.run.teacher.path for planned in moved.planned_runs if planned.run.teacher}  # type: ignore[union-attr]
    assert teachers == {Path("/there/resnet14.pth")}
    assert str(here).encode() not in pickle.dumps(moved)


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_every_backend_of_the_table_keeps_the_contract(name: str) -> None:
    found = backends.BACKENDS[name]
    assert isinstance(found.tells_progress, bool)
    assert all(callable(getattr(found, method)) for method in ("submit", "wait", "cancel"))


# --- what the command makes of a backend -------------------------------------------------------------------------


class Scripted:
    """A backend whose waits end as a list says."""

    tells_progress = True

    def __init__(self, workers: int, *ends: Ended | BaseException | None) -> None:
        self.workers = workers
        self.events: list[str] = []
        self._ends = list(ends)

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        self.events.append("submit")

    def wait(self, seconds: float) -> Ended | None:
        end = self._ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end

    def cancel(self) -> None:
        self.events.append("cancel")


def _train(backend: Scripted, waiting: int = 9) -> list[tuple[Any, ...]]:
    heard = Heard()
    assignment = Assignment((), Path("results"), Path("data"), None, "last")
    run_grid._train(backend, waiting, assignment, heard, None)  # type: ignore[arg-type]
    return heard.of("note")


def test_the_end_of_every_worker_is_waited_for_and_a_death_is_told() -> None:
    backend = Scripted(2, None, Ended("process 7 was killed"), None, Ended("process 8 was killed"))
    assert _train(backend) == [
        ["worker process 7 was killed: the others take over its runs"],
        ["worker process 8 was killed"],
    ]
    assert backend.events == ["submit", "submit"]


def test_there_are_no_more_workers_than_cohorts() -> None:
    backend = Scripted(5, Ended(), Ended())
    assert _train(backend, waiting=2) == []
    assert backend.events == ["submit", "submit"]


@pytest.mark.parametrize("end", [Trouble("the disk is full"), KeyboardInterrupt()])
def test_what_ends_the_command_cancels_the_workers(end: BaseException) -> None:
    backend = Scripted(2, Ended(), end)
    with pytest.raises(type(end)):
        _train(backend)
    assert backend.events == ["submit", "submit", "cancel"]
