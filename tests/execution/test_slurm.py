"""A real Slurm of three nodes on this host: elements are preempted, nodes and the controller die."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdtable.errors import BadRequest
from kdtable.execution.backends import slurm_arrays
from kdtable.execution.backends.slurm_arrays import CHUNK, MOST, SlurmArrays, parameters_of
from kdtable.execution.cluster_settings import ClusterSettings
from kdtable.execution.known import opened
from kdtable.execution.run_grid import Outcome
from kdtable.execution.timings import Timings
from kdtable.store import Store
from tests import slurm as own_slurm
from tests.cli.command import (
    SMALL,
    TEACHER,
    Shell,
    assert_same_numbers,
    finish,
    interruptible,
    runs_in,
)
from tests.execution.grids import Heard, plan, plugged, train, write_grid
from tests.execution.samples import RECIPE, cohort, run

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'kdtable[slurm]'")

RUN = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd", "--seeds", "1,", *SMALL, *TEACHER)
ON = ("--on", "slurm", "--cluster", "pause=0.5", "--cluster", "slurm.partition=all")
EPOCHS = ("--epochs", "12")


@pytest.fixture(scope="module")
def slurm() -> Iterator[own_slurm.Slurm]:
    if (reason := own_slurm.why_not()) is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            found = stack.enter_context(own_slurm.serve())
        except own_slurm.NotUpError as error:
            pytest.skip(str(error))
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in found.variables.items():
            patched.setenv(name, value)
        yield found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path)
    return tmp_path


def _settings(**more: Any) -> ClusterSettings:
    return ClusterSettings(pause=0.3, slurm={"partition": "all", **more})


@pytest.fixture
def near(here: Path) -> Iterator[None]:
    """A method of a plug-in."""
    with plugged(here):
        yield


def test_slurm_makes_the_same_grid_as_this_process(slurm: own_slurm.Slurm, near: None) -> None:
    planned_runs = plan([1], methods=["kd", "near"])
    train(planned_runs, Path("alone"))
    heard = Heard()
    assert train(planned_runs, Path("results"), heard, engine=SlurmArrays(_settings(), "cpu")) == Outcome(2, 0, 0)
    _assert_whole(Path("results"), Path("alone"))
    assert heard.of("note") == heard.of("failed") == []
    assert not slurm.run("squeue", "--noheader").strip()
    (log,) = Path("results/cluster/slurm").glob("*.out")
    assert "kdtable: begins 2 runs with teacher resnet14" in log.read_text()


def _assert_whole(results: Path, alone: Path) -> None:
    """As a local command leaves them: equal to the bit, a row for each run, no claims, nothing half-written."""
    assert_same_numbers(results, alone)
    with closing(Store(results)) as store, store.database.read() as db:
        assert not db.exec_driver_sql("SELECT * FROM workers WHERE id IN (SELECT claimed_by FROM runs)").all()
    assert {run["status"] for run in runs_in(results).values()} == {"done"}
    assert {file.name for file in results.glob("runs/*/*")} == {"student.safetensors"}


# --- what is submitted ---------------------------------------------------------------------------------------------


def _packed(timings: Timings, *cohorts: Any, **settings: Any) -> list[list[int]]:
    engine = SlurmArrays(ClusterSettings(**settings))
    engine._timings = timings
    return [[each.seed for each in part] for part in engine.parts(cohorts)]


def test_elements_are_packed_by_stored_timings(slurm: own_slurm.Slurm) -> None:
    first = cohort(*(run("kd", seed=seed) for seed in range(1, 6)))
    second = cohort(*(run("kd", student="resnet20", seed=seed) for seed in (6, 7)))
    data = first.runs[0].data.key
    # Two epochs each: 20 minutes of a resnet8, 90 of a resnet20.
    timings = Timings({("resnet8", "kd", data): 600.0, ("resnet20", "kd", data): 2700.0})
    assert RECIPE.epochs == 2
    assert _packed(timings, first, second) == [[1, 2, 3], [4, 5, 6], [7]]
    assert _packed(timings, first, second, hours=3) == [[1, 2, 3, 4, 5, 6], [7]]
    many = cohort(*(run("kd", seed=seed) for seed in range(1, MOST + 3)))
    assert list(map(len, _packed(Timings({}), many))) == [MOST, 2], "of what nothing is known a few at a time"


def test_another_row_of_a_known_student_counts_like_its_slowest() -> None:
    data = run("kd").data.key
    timings = Timings({("resnet8", "kd", data): 10.0, ("resnet8", "at", data): 30.0})
    assert timings.of(run("at")) == 60.0
    assert timings.of(run("crd")) == 60.0
    assert timings.of(run("kd", student="resnet20")) is None


def test_the_parameters_of_an_array(slurm: own_slurm.Slurm) -> None:
    found = parameters_of(ClusterSettings(cpus=3, memory_gb=1.5, hours=4, slurm={"qos": "low", "signal_delay_s": 30}))
    assert found == {
        **{"job_name": "kdtable", "time": 480, "cpus_per_task": 3, "mem": "1500M", "stderr_to_stdout": True},
        **{"qos": "low", "signal_delay_s": 30},
    }


def test_arrays_have_at_most_so_many_elements(slurm: own_slurm.Slurm, here: Path, monkeypatch: Any) -> None:
    """Held arrays: Slurm takes them, and nothing runs."""
    monkeypatch.setattr(slurm_arrays, "CHUNK", 2)
    assert CHUNK == 500
    planned_runs = plan([1, 2, 3])
    engine = SlurmArrays(_settings(additional_parameters={"hold": True}, array_parallelism=7), "cpu")
    monkeypatch.setattr(engine, "parts", lambda cohorts: [(each,) for whole in cohorts for each in whole.runs])
    assert train(planned_runs, Path("results"), engine=engine, detach=True).unfinished == 6
    try:
        queued = slurm.run("squeue", "--noheader", "--array", "--format=%F %K").split("\n")
        assert sorted(line.split()[1] for line in queued if line) == ["0", "0", "0", "1", "1", "1"]
        assert len({line.split()[0] for line in queued if line}) == 3
    finally:
        slurm.run("scancel", "--user=0")
        _until(lambda: True if not slurm.run("squeue", "--noheader").strip() else None)


# --- what dies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A folder with a grid trained alone, and a Slurm that trains it again."""

    folder: Path
    slurm: own_slurm.Slurm
    shell: Shell

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def training(self) -> str:
        """The id of a job whose run has an epoch, once there is one."""

        def found() -> str | None:
            if not any(epochs for epochs in self.epochs().values()):
                return None
            return next(
                iter(self.slurm.run("squeue", "--noheader", "--array", "--states=R", "--format=%i").split()), None
            )

        return str(_until(found))

    def epochs(self) -> dict[str, Any]:
        with opened(self.results, None) as store:
            running = [each for each in store.runs() if each.status == "running"] if store else []
        return {each.id: each.last_epoch for each in running}

    def logs(self) -> str:
        return "\n".join(log.read_text() for log in (self.results / "cluster" / "slurm").glob("*.out"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the grid that a local command makes."""
    folder = tmp_path_factory.mktemp("alone")
    write_grid(folder)
    done = Shell(folder).run(*RUN, *EPOCHS, "--results", "alone")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def grid(slurm: own_slurm.Slurm, alone: Path, tmp_path: Path) -> Grid:
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    return Grid(tmp_path, slurm, Shell(tmp_path, {**slurm.variables, "KDTABLE_LEASE": "10"}))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["preempted", "requeued"])
def test_an_element_that_is_queued_again(grid: Grid, how: str) -> None:
    command = grid.shell.start(*RUN, *EPOCHS, *ON)
    try:
        job = grid.training()
        words = ("scancel", "--signal=USR2", job) if how == "preempted" else ("scontrol", "requeue", job)
        grid.slurm.run(*words)
        done = finish(command)
    finally:
        command.kill()
    assert done.code == 0, done.err
    assert {each["attempt"] for each in runs_in(grid.results).values()} >= {2}, "it was begun again"
    if how == "preempted":
        assert "Caught signal SIGUSR2" in grid.logs()
    _assert_whole(grid.results, grid.folder / "alone")


@pytest.mark.slow
def test_a_node_that_dies(grid: Grid) -> None:
    command = grid.shell.start(*RUN, *EPOCHS, *ON)
    try:
        job = grid.training()
        node = grid.slurm.run("squeue", "--noheader", "--array", f"--jobs={job}", "--format=%N").strip()
        grid.slurm.kill(node)  # the job's processes live on: Slurm believes them dead, and they write no more
        done = finish(command)
    finally:
        command.kill()
        grid.slurm.start_node(node)
    assert done.code == 0, done.err
    _assert_whole(grid.results, grid.folder / "alone")


@pytest.mark.slow
def test_a_controller_that_is_away_for_a_while(grid: Grid) -> None:
    command = grid.shell.start(*RUN, *EPOCHS, *ON)
    try:
        grid.training()
        grid.slurm.kill("slurmctld")
        time.sleep(5)
        grid.slurm.start_controller()
        done = finish(command)
    finally:
        command.kill()
    assert done.code == 0, done.err
    _assert_whole(grid.results, grid.folder / "alone")


@pytest.mark.slow
def test_a_command_killed_and_called_again_finds_its_jobs_at_work(grid: Grid) -> None:
    first = grid.shell.start(*RUN, *EPOCHS, *ON)
    grid.training()
    first.kill()
    first.wait()
    done = grid.shell.run(*RUN, *EPOCHS, *ON)
    assert done.code == 0, done.err
    assert {each["attempt"] for each in runs_in(grid.results).values()} == {1}, "the jobs of the first went on"
    _assert_whole(grid.results, grid.folder / "alone")


@pytest.mark.slow
def test_an_interrupted_command_releases_its_runs(grid: Grid) -> None:
    with interruptible():
        command = grid.shell.start(*RUN, *EPOCHS, *ON)
        grid.training()
        command.send_signal(signal.SIGINT)
        done = finish(command)
    assert done.code == 130, done.err
    assert "running" not in {each["status"] for each in runs_in(grid.results).values()}
    assert not grid.slurm.run("squeue", "--noheader", "--states=R,PD").strip()
    again = grid.shell.run(*RUN, *EPOCHS, *ON)
    assert again.code == 0, again.err
    _assert_whole(grid.results, grid.folder / "alone")


@pytest.mark.slow
def test_a_grid_left_to_slurm_trains_what_others_need_first(grid: Grid) -> None:
    """``dih`` needs a teacher's heads: its array waits for theirs."""
    words = (
        "run",
        "--paper",
        "dih",
        "--pairs",
        "resnet14:resnet8",
        "--methods",
        "dih",
        "--seeds",
        "1",
        *SMALL,
        *TEACHER,
    )
    alone = grid.shell.run(*words, "--epochs", "1", "--results", "other")
    assert alone.code == 0, alone.err
    done = grid.shell.run(*words, "--epochs", "1", *ON, "--detach")
    assert done.code == 0, done.err
    told = re.search(r"left to jobs (\d+), (\d+); logs are in results/cluster", done.err)
    assert told is not None, done.err
    _until(lambda: True if not grid.slurm.run("squeue", "--noheader").strip() else None)
    assert_same_numbers(grid.results, grid.folder / "other")


def _until(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
        time.sleep(0.05)
    raise AssertionError("it does not come")


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_misspelt_parameter(slurm: own_slurm.Slurm) -> None:
    with pytest.raises(BadRequest, match=r"\[cluster.slurm\] .*unknown parameter 'partitio'; did you mean partition"):
        parameters_of(ClusterSettings(slurm={"partitio": "all"}))


def test_a_partition_that_is_not_there(slurm: own_slurm.Slurm, here: Path) -> None:
    with pytest.raises(BadRequest, match="other machines than this"):
        train(plan([1]), Path("results"), engine=SlurmArrays(ClusterSettings(slurm={"partition": "nowhere"}), "cpu"))


def test_a_partition_of_other_machines_cannot_share_sqlite(slurm: own_slurm.Slurm, here: Path) -> None:
    with pytest.raises(BadRequest, match=r"other machines than this \(elsewhere\).*name a PostgreSQL database"):
        train(plan([1]), Path("results"), engine=SlurmArrays(_settings(partition="far"), "cpu"))
    assert not Path("results").exists()


def test_an_array_that_slurm_does_not_take(slurm: own_slurm.Slurm, here: Path) -> None:
    nowhere = {"reservation": "nowhere"}
    with pytest.raises(BadRequest, match=r"Slurm took no array \(.*\): see \[cluster.slurm\] of kdtable.toml"):
        train(plan([1]), Path("results"), engine=SlurmArrays(_settings(additional_parameters=nowhere), "cpu"))


def test_an_array_that_can_never_run_is_told(slurm: own_slurm.Slurm, here: Path) -> None:
    """Slurm takes it all the same: perhaps nodes are yet to come."""

    class Impatient(Heard):
        def note(self, text: str) -> None:
            self.calls.append(("note", text))
            raise KeyboardInterrupt

    heard = Impatient()
    with pytest.raises(KeyboardInterrupt):
        train(plan([1]), Path("results"), heard, engine=SlurmArrays(_settings(cpus_per_task=64), "cpu"))
    assert heard.of("note") == [
        ["Slurm lets elements wait for 'PartitionConfig': see 'squeue --me', and [cluster.slurm]"]
    ]
    assert not slurm.run("squeue", "--noheader", "--states=PD,R").strip(), "and it was taken back"


def test_without_the_package_or_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadRequest, match="there is no 'sbatch' or 'srun' here"):
        SlurmArrays(ClusterSettings())
    monkeypatch.setattr(slurm_arrays, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"--on slurm needs submitit: pip install 'kdtable\[slurm\]'"):
        SlurmArrays(ClusterSettings())


def test_without_an_answer_of_slurm(slurm: own_slurm.Slurm, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (slurm.folder / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1#")
    (here / "slurm.conf").write_text(f"{settings}\nMessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(here / "slurm.conf"))
    with pytest.raises(BadRequest, match="Slurm does not answer: see what 'sinfo' says"):
        train(plan([1]), Path("results"), engine=SlurmArrays(_settings(), "cpu"))
    assert subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0
