"""A real Ray cluster of three nodes on this machine; nodes, workers and commands die."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdtable import provenance
from kdtable.errors import BadRequest, Trouble
from kdtable.execution.backends import ray_tasks
from kdtable.execution.backends.ray_tasks import RayTasks, answers
from kdtable.execution.cluster_settings import ClusterSettings, RaySettings
from kdtable.execution.known import opened
from kdtable.execution.run_grid import Outcome
from kdtable.planning.cohorts import cohorts
from kdtable.store import Store
from tests import postgres
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

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'kdtable[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
RUN = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd", "--seeds", "1,", *SMALL, *TEACHER)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU each, as processes of their own."""
    with _cluster() as found:
        yield found


@contextmanager
def _cluster(nodes: int = 3) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        # Workers import what the tests do; and nothing is told to Ray's makers.
        patched.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        head = {**NODE, "include_dashboard": False}
        found = _started(lambda: cluster_utils.Cluster(initialize_head=True, head_node_args=head))
        try:
            for _ in range(nodes - 1):
                _started(lambda: found.add_node(**NODE))
            yield found
        finally:
            found.shutdown()


def _started(start: Callable[[], Any]) -> Any:
    """What ``start`` returns. A busy machine may need longer for it than the 30 seconds that Ray gives it."""
    for _ in range(5):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


def _engine(cluster: Any, **settings: Any) -> RayTasks:
    return RayTasks(ClusterSettings(ray=RaySettings(address=cluster.address), **settings), "cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path)
    return tmp_path


@pytest.fixture
def near(here: Path) -> Iterator[None]:
    """A method of a plug-in."""
    with plugged(here):
        yield


def test_a_cluster_makes_the_same_grid_as_this_process(cluster: Any, near: None) -> None:
    planned_runs = plan([1], methods=["kd", "near"])
    train(planned_runs, Path("alone"))
    heard = Heard()
    engine = _engine(cluster)
    assert (engine.slots, engine.workers, engine.resources()) == (3, 6, {"num_cpus": 1})
    assert [len(part) for part in engine.parts(cohorts(planned.run for planned in planned_runs))] == [1, 1]
    assert train(planned_runs, Path("results"), heard, engine=engine) == Outcome(2, 0, 0)
    _assert_whole(Path("results"), Path("alone"))
    assert heard.of("note") == heard.of("failed") == []
    assert not ray.is_initialized(), "the command has left the cluster"


def _assert_whole(results: Path, alone: Path) -> None:
    """As a local command leaves them: equal to the bit, a row for each run, no claims, nothing half-written."""
    assert_same_numbers(results, alone)
    with closing(Store(results)) as store, store.database.read() as db:
        assert not db.exec_driver_sql("SELECT * FROM workers WHERE id IN (SELECT claimed_by FROM runs)").all()
    assert {run["status"] for run in runs_in(results).values()} == {"done"}
    assert {file.name for file in results.glob("runs/*/*")} == {"student.safetensors"}


# --- what dies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A folder with a grid trained alone, and a command on the cluster that trains it again."""

    folder: Path
    words: tuple[str, ...]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def trainer(self, epochs: int = 1) -> psutil.Process:
        """The worker that trains a run which has so many epochs, once there is one."""
        query = "SELECT w.pid, r.id FROM runs r JOIN workers w ON w.id = r.claimed_by WHERE r.status = 'running'"
        end = time.monotonic() + 300
        while time.monotonic() < end:
            with opened(self.results, None) as store:
                if store is not None:
                    with store.database.read() as db:
                        found = db.exec_driver_sql(query).all()
                    for pid, run in found:
                        if len(store.history(run)) >= epochs:
                            return psutil.Process(pid)
            time.sleep(0.05)
        raise AssertionError("nothing trains")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the grid that a local command makes."""
    folder = tmp_path_factory.mktemp("alone")
    write_grid(folder)
    done = Shell(folder).run(*RUN, "--epochs", "12", "--results", "alone")
    assert done.code == 0, done.err
    return folder


@contextmanager
def _copied(alone: Path, tmp_path: Path, cluster: Any) -> Iterator[tuple[Grid, Shell]]:
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    words = (*RUN, "--epochs", "12", "--on", "ray", "--cluster", f"ray.address={cluster.address}")
    yield Grid(tmp_path, words), Shell(tmp_path)


@pytest.mark.slow
def test_a_node_lost_by_force_amid_an_epoch(cluster: Any, alone: Path, tmp_path: Path) -> None:
    with _copied(alone, tmp_path, cluster) as (grid, shell):
        command = shell.start(*grid.words)
        try:
            raylets = {grid_node.all_processes["raylet"][0].process.pid: grid_node for grid_node in _others(cluster)}
            node = _until(lambda: raylets.get(grid.trainer().ppid()))
            cluster.remove_node(node, allow_graceful=False)
            done = finish(command)
        finally:
            command.kill()
            while len(_others(cluster)) < 2:
                cluster.add_node(**NODE)
        assert done.code == 0, done.err
        assert "worker was lost (" in done.err
        assert "its runs go on in another one" in done.err
        _assert_whole(grid.results, tmp_path / "alone")


@pytest.mark.slow
def test_a_worker_killed_again_and_again_makes_progress(cluster: Any, alone: Path, tmp_path: Path) -> None:
    """Retries are counted by progress: more deaths than are allowed in a row, each after a new epoch.

    Its checkpoints are at a URL, where each death may leave a file that belongs to nothing.
    """
    there = tmp_path / "there"
    with _copied(alone, tmp_path, cluster) as (grid, shell):
        where = ("--cluster", "runs_per_task=1", "--checkpoints", f"file://{there}")
        command = shell.start(*grid.words, "--methods", "kd", "--seeds", "1,", *where)
        try:
            for epochs in range(1, 5):
                grid.trainer(epochs).kill()
            done = finish(command)
        finally:
            command.kill()
        assert done.code == 0, done.err
        assert done.err.count("its runs go on in another one") == 4
        (run,) = runs_in(grid.results).values()
        assert (run["status"], run["attempt"]) == ("done", 5)
        (student,) = there.glob("*/*")
        assert student.name.startswith("student-5-12-")
        assert student.read_bytes() == (tmp_path / "alone/runs" / str(run["id"]) / "student.safetensors").read_bytes()


@pytest.mark.slow
def test_a_command_killed_and_called_again(cluster: Any, alone: Path, tmp_path: Path) -> None:
    with _copied(alone, tmp_path, cluster) as (grid, shell):
        first = shell.start(*grid.words)
        grid.trainer()
        first.kill()
        first.wait()
        done = shell.run(*grid.words)
        assert done.code == 0, done.err
        _assert_whole(grid.results, tmp_path / "alone")


@pytest.mark.slow
def test_an_interrupted_command_releases_its_runs(cluster: Any, alone: Path, tmp_path: Path) -> None:
    with _copied(alone, tmp_path, cluster) as (grid, shell), interruptible():
        command = shell.start(*grid.words)
        grid.trainer()
        command.send_signal(signal.SIGINT)
        done = finish(command)
        assert done.code == 130
        assert "kdtable: interrupted; finished epochs are kept. Go on with: kdtable run" in done.err
        assert "running" not in {run["status"] for run in runs_in(grid.results).values()}
        assert any(run["last_epoch"] for run in runs_in(grid.results).values())
        again = shell.run(*grid.words)
        assert again.code == 0, again.err
        _assert_whole(grid.results, tmp_path / "alone")


@pytest.mark.slow
def test_a_head_that_is_lost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would end the process after a minute, with lines of a C++ program."""
    monkeypatch.setattr(ray_tasks, "AWAY", 4.0)
    with _cluster(nodes=1) as lost:
        engine = _engine(lost)
        assert engine.wait(0.1) is None
        lost.head_node.kill_gcs_server(check_alive=False)
        with pytest.raises(Trouble, match=r"the head of the Ray cluster at .* is gone: finished epochs are kept;"):
            _until(lambda: engine.wait(0.1))
        engine.cancel()


@pytest.mark.slow
def test_postgresql_restarted_amid_training(cluster: Any, alone: Path, tmp_path: Path) -> None:
    with postgres.serve() as server:
        url = server.new_database()

        class Restarting(Heard):
            def epoch(self, *_: Any) -> None:
                if not self.calls:
                    server.stop()
                    time.sleep(3)
                    server.start()
                self.calls.append(("epoch",))

        planned_runs = plan([1, 2], alone)
        heard = Restarting()
        outcome = train(planned_runs, tmp_path / "results", heard, url=url, engine=_engine(cluster))
        train(planned_runs, tmp_path / "alone")
        assert outcome == Outcome(4, 0, 0)
        assert_same_numbers(tmp_path / "results", tmp_path / "alone", url)
        assert not heard.of("failed")
        assert {run["status"] for run in runs_in(tmp_path / "results", url).values()} == {"done"}


@pytest.mark.slow
def test_two_commands_on_one_store(cluster: Any, alone: Path, tmp_path: Path) -> None:
    with _copied(alone, tmp_path, cluster) as (grid, shell):
        first, second = shell.start(*grid.words), shell.start(*grid.words)
        done = [finish(first), finish(second)]
        assert [each.code for each in done] == [0, 0], done
        _assert_whole(grid.results, tmp_path / "alone")


def _others(cluster: Any) -> list[Any]:
    return [node for node in cluster.list_all_nodes() if node is not cluster.head_node]


def _until(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
    raise AssertionError("it does not come")


# --- what is refused -----------------------------------------------------------------------------------------------


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(BadRequest, match=f"no Ray cluster answers at {address}: start one"):
            RayTasks(ClusterSettings(ray=RaySettings(address=address)))


def test_somebody_else_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
        assert not answers(f"127.0.0.1:{mute.getsockname()[1]}", patience=0.2)


@pytest.mark.parametrize(
    ("address", "part"),
    [("ray://head:10001", "use 'ray job submit' instead"), ("head", "ray.address is HOST:PORT, auto or local")],
)
def test_addresses_that_are_none(address: str, part: str) -> None:
    with pytest.raises(BadRequest, match=part):
        RayTasks(ClusterSettings(ray=RaySettings(address=address)))


def test_nodes_with_other_sources_are_refused(cluster: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine(cluster)
    monkeypatch.setattr(provenance, "source_hash", lambda: "0123456789abcdef")  # of this command alone
    with pytest.raises(BadRequest, match=r"has kdtable .*, and this command has .* with 0123456789abcdef: install the"):
        train(plan([1]), Path("results"), engine=engine)
    assert not Path("results/kdtable.sqlite").exists()
    ray.shutdown()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"--on ray needs Ray: pip install 'kdtable\[ray\]'"):
        RayTasks(ClusterSettings())


@pytest.mark.slow
def test_another_machine_cannot_share_sqlite(cluster: Any, here: Path) -> None:
    """A node with another host name stands for another machine."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    start = f"hostname elsewhere && exec ray start --address={cluster.address} --num-cpus=1 --block"
    path = {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    node = subprocess.Popen(
        ["unshare", "--uts", "sh", "-c", start], env=os.environ | path, process_group=0, stdout=subprocess.DEVNULL
    )
    try:
        _until(lambda: True if _alive(cluster) == 4 else None)
        with pytest.raises(BadRequest, match=r"other machines than this \(elsewhere, .*name a PostgreSQL database"):
            train(plan([1]), Path("results"), engine=_engine(cluster))
        assert not Path("results/kdtable.sqlite").exists()
    finally:
        ray.shutdown()
        os.killpg(node.pid, signal.SIGTERM)
        node.wait()


def _alive(cluster: Any) -> int:
    """The number of nodes of a cluster, as Ray counts them."""
    ray.init(cluster.address, log_to_driver=False)
    try:
        return sum(node["Alive"] for node in ray.nodes())
    finally:
        ray.shutdown()
