"""How an engine is given a request: what is ready, again what was lost, and nothing for ever."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kdtable.errors import BadRequest
from kdtable.execution import dispatch as dispatching
from kdtable.execution.assignment import Assignment
from kdtable.execution.backends.base import Ended, Engine
from kdtable.execution.dispatch import TRIES
from kdtable.execution.part import packed_part, train_part
from kdtable.execution.progress import Progress
from kdtable.execution.run_grid import Outcome
from kdtable.execution.timings import Timings
from kdtable.planning.cohorts import CohortPlan
from kdtable.planning.run import Run
from kdtable.plugins import loaded
from kdtable.store import Store, Worker
from kdtable.store.claims import Survey
from tests.cli.command import assert_same_numbers, runs_in
from tests.execution.grids import Heard, plan, plugged, train, write_grid


class Here:
    """An engine whose workers train in this process, one after the other.

    Args:
        dies: seeds whose workers end as if killed before they begin.
        after: how many workers die.
    """

    workers = 2
    tells_progress = False

    def __init__(self, dies: Iterable[int] = (), after: int = 1_000_000) -> None:
        self._dies = set(dies)
        self._left = after
        self._queue: list[Assignment] = []
        self.sizes: list[int] = []
        self.cancelled = 0

    def check(self, assignment: Assignment) -> None:
        pass

    def parts(self, cohorts: Sequence[CohortPlan]) -> list[tuple[Run, ...]]:
        return [(run,) for cohort in cohorts for run in cohort.runs]

    def submit(self, assignment: Assignment, progress: Progress) -> None:
        self._queue.append(assignment)
        self.sizes.append(len(self._queue))

    def wait(self, seconds: float) -> Ended | None:
        if not self._queue:
            return None
        part = self._queue.pop(0)
        if self._dies & {planned.run.seed for planned in part.planned_runs} and self._left:
            self._left -= 1
            return Ended("was lost (NodeDied)", part)
        report = train_part(*packed_part(part, "cpu", 1))
        if report.refused:
            raise BadRequest(report.refused)
        return Ended(report.error, part)

    def cancel(self) -> None:
        self._queue.clear()
        self.cancelled += 1

    def plan_words(self, cohorts: Sequence[CohortPlan], timings: Timings) -> str:
        return ""

    def leave(self, assignment: Assignment, runs: Iterable[Run]) -> list[str]:
        return []


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path)


def test_parts_make_the_same_grid(tmp_path: Path) -> None:
    planned_runs = plan([1, 2])
    train(planned_runs, Path("alone"))
    engine: Engine = (here := Here())
    heard = Heard()
    assert train(planned_runs, Path("results"), heard, engine=engine) == Outcome(4, 0, 0)
    assert_same_numbers(Path("results"), Path("alone"))
    assert here.sizes == [1, 2, 2, 2], "no more at a time than it takes"
    assert here.cancelled == 1
    assert heard.of("note") == heard.of("failed") == []
    newest = {run.id: record.epoch for run, record in heard.of("epoch")}
    assert newest == dict.fromkeys((planned.run.id for planned in planned_runs), 2)
    with closing(Store(Path("results"))) as store, store.database.read() as db:
        assert not db.exec_driver_sql("SELECT * FROM workers").all(), "the command is no worker any more"


def test_what_was_lost_is_submitted_again_and_what_is_lost_always_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "PAUSE", 0.05)
    planned_runs = plan([1, 2])
    heard = Heard()
    assert train(planned_runs, Path("results"), heard, engine=Here(dies=[2])) == Outcome(2, 2, 0)
    told = heard.of("note")
    assert len(told) == 2 * TRIES
    assert told[0] == ["worker was lost (NodeDied): its runs go on in another one"]
    reasons = {run["reason"] for run in runs_in(Path("results")).values() if run["seed"] == 2}
    assert reasons == {
        "3 workers in a row died with it before they finished an epoch; the last one was lost (NodeDied)"
    }
    # The next command tries failed runs again; fewer losses than that cost nothing.
    assert train(planned_runs, Path("results"), engine=Here(dies=[2], after=TRIES)) == Outcome(4, 0, 0)


def test_runs_that_are_over_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that looks at a large grid get cheaper towards its end."""
    over: defaultdict[str, set[str]] = defaultdict(set)
    again: list[set[str]] = []
    survey = Worker.survey

    def noted(worker: Worker, ids: Iterable[str]) -> Survey:
        wanted = set(ids)
        again.append(wanted & over[worker.id])
        found = survey(worker, wanted)
        over[worker.id].update(run for run, status in found.statuses.items() if status == "done")
        return found

    monkeypatch.setattr(dispatching, "PAUSE", 0.0)
    monkeypatch.setattr(Worker, "survey", noted)
    assert train(plan([1, 2]), Path("results"), engine=Here()) == Outcome(4, 0, 0)
    assert max(map(len, over.values())) == 4, "the command saw all of them end"
    assert not any(again)


def test_a_grid_that_is_done_asks_nothing_of_the_engine() -> None:
    planned_runs = plan([1])
    train(planned_runs, Path("results"))
    assert train(planned_runs, Path("results"), engine=(here := Here())) == Outcome(2, 0, 0)
    assert here.sizes == []


def test_a_worker_that_is_refused_ends_the_command(tmp_path: Path) -> None:
    class Elsewhere(Here):
        def submit(self, assignment: Assignment, progress: Progress) -> None:
            (assignment.results / "cluster" / "mark").unlink(missing_ok=True)
            super().submit(replace(assignment, results=tmp_path / "other"), progress)

        def wait(self, seconds: float) -> Ended | None:
            stamp, packed = packed_part(self._queue[0], "cpu", 1)
            (tmp_path / "other" / "cluster" / "mark").unlink()
            raise BadRequest(str(train_part(stamp, packed).refused))

    engine = Elsewhere()
    with pytest.raises(BadRequest, match=r"does not see the results folder .*: name one that all machines share"):
        train(plan([1]), Path("results"), engine=engine)
    assert engine.cancelled == 1
    assert {run["status"] for run in runs_in(Path("results")).values()} == {"planned"}, "nothing was begun"


def test_another_version_is_refused_with_both() -> None:
    stamp, packed = packed_part(Assignment(plan([1]), Path("results").absolute(), Path("data"), None, "last"), "cpu", 1)
    report = train_part(stamp | {"source": "0123456789abcdef"}, packed)
    assert report.refused is not None
    assert f"with sources {stamp['source']}, and this command has" in report.refused
    assert "with 0123456789abcdef: install the same on all machines" in report.refused


def test_a_plug_in_that_is_another_file_there_is_refused(tmp_path: Path) -> None:
    with plugged(tmp_path) as file:
        planned_runs = plan([1], methods=["near"])
        assignment = Assignment(planned_runs, tmp_path / "results", Path("data"), None, "last", plugins=loaded())
        packed = packed_part(assignment, "cpu", 1)
        file.write_text(file.read_text() + "# edited\n")
        refused = train_part(*packed).refused
    assert refused is not None
    assert f"plug-in {file} is another file here" in refused
    assert not (tmp_path / "results" / "kdtable.sqlite").exists()


def test_a_part_without_patience_leaves_what_another_process_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    planned_runs = plan([1])
    assignment = Assignment(planned_runs, Path("results").absolute(), Path("data"), None, "last", patience=0.0)
    from kdtable.execution.run_grid import store_row
    from kdtable.store import Worker
    from tests.store.samples import ORIGIN

    with closing(Store(Path("results"))) as store:
        store.plan([store_row(planned) for planned in planned_runs])
        with Worker(store) as other:
            other.claim([planned.run.id for planned in planned_runs], ORIGIN)
            assert train_part(*packed_part(assignment, "cpu", 1)).refused is None
            assert set(store.statuses(planned.run.id for planned in planned_runs).values()) == {"running"}
