"""``kdtable run --log wandb,mlflow`` with the real packages, without a network or a login."""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Shell, finish, runs_in, wait_for
from tests.cli.test_log import GRID, LONG, Points, expected

pytestmark = pytest.mark.slow

#: Bytes of a block of wandb's files, which have the format of LevelDB's logs.
BLOCK = 32768


@pytest.fixture
def shell(tiny: Path) -> Shell:
    """A user who is not logged in."""
    return Shell(tiny, {"HOME": str(tiny / "home"), "NETRC": str(tiny / "no-such-file")})


# --- wandb -------------------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Any]:
    """The records of a run's ``.wandb`` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def values(items: Iterable[Any]) -> dict[str, Any]:
    """The values of a record by name; wandb writes a name as a key or as a path of one."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def wandb_points(path: Path) -> Points:
    found: Points = {}
    for record in records(path):
        row = values(record.history.item)
        for name, value in row.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((row["_step"], value))
    return found


@pytest.mark.parametrize("variables", [{}, {"WANDB_DIR": "elsewhere"}])
def test_wandb_offline(variables: dict[str, str], shell: Shell) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    (shell.folder / "elsewhere").mkdir()
    done = Shell(shell.folder, {**shell.variables, **variables}).run(*GRID, "--log", "wandb")
    assert done.code == 0, done.err
    assert len(done.errors) == 5, done.err
    results = shell.folder / "results"
    logs = shell.folder / variables.get("WANDB_DIR", "results/logs") / "wandb"
    for run, stored in runs_in(results).items():
        (path,) = logs.glob(f"offline-run-*-{run}/*.wandb")
        assert wandb_points(path) == expected(results, run)
        (begun,) = (record.run for record in records(path) if record.HasField("run"))
        config = values(begun.config.update)
        assert begun.display_name == f"{stored['row']} resnet14:resnet8 seed 1"
        assert (config["run"], config["row"], config["recipe"]["batch_size"]) == (run, stored["row"], 16)
    summaries = [
        values(record.summary.update) for path in logs.glob("offline-run-*/*.wandb") for record in records(path)
    ]
    (table,) = (summary["table"] for summary in summaries if "table" in summary)
    assert "resnet14:resnet8" in table
    assert (logs.parent == results / "logs") == ("WANDB_DIR" not in variables)


# --- MLflow ------------------------------------------------------------------------------------------------------


def mlflow_runs(uri: str) -> dict[str, Any]:
    """The runs of the experiment by their names, each with its metrics."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("kdtable")
    assert experiment is not None
    return {run.info.run_name: (client, run) for run in client.search_runs([experiment.experiment_id])}


def mlflow_points(client: Any, run: Any) -> Points:
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: sorted((metric.step, metric.value) for metric in history) for name, history in histories.items()}


def test_mlflow_in_a_file(shell: Shell) -> None:
    """Also after a kill: the run that goes on is the same one, and no point is double."""
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    command = shell.start(*LONG, "--log", "mlflow")
    try:
        wait_for("at seed 1 main epoch 2/4", command)
    finally:
        command.kill()
    finish(command)
    done = shell.run(*LONG, "--log", "mlflow")
    assert done.code == 0, done.err
    results = shell.folder / "results"
    assert [line for line in done.errors if "cohort" not in line] == [], "mlflow says nothing of its own"
    found = mlflow_runs(f"sqlite:///{results / 'logs' / 'mlflow' / 'mlflow.db'}")
    assert len(found) == 3
    for run, stored in runs_in(results).items():
        client, theirs = found[f"{stored['row']} resnet14:resnet8 seed 1"]
        assert mlflow_points(client, theirs) == expected(results, run)
        assert (theirs.info.status, theirs.data.tags["kdtable.run"]) == ("FINISHED", run)
        assert theirs.data.params["recipe.batch_size"] == "16"
    client, table = found["table"]
    (file,) = client.list_artifacts(table.info.run_id)
    assert file.path == "table.md"
    assert list(shell.folder.glob("results/logs/mlflow/artifacts/*/artifacts/table.md"))
    assert not (shell.folder / "mlruns").exists()


def test_mlflow_where_the_user_says(shell: Shell) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = f"sqlite:///{shell.folder / 'own.db'}"
    done = Shell(shell.folder, {**shell.variables, "MLFLOW_TRACKING_URI": uri}).run(*GRID, "--log", "mlflow")
    assert done.code == 0, done.err
    assert len(mlflow_runs(uri)) == 3
    assert not (shell.folder / "results" / "logs").exists()
