"""``kdtable run --log``: what loggers have is what the store has, and none of them disturbs training."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdtable.execution.loggers import LOGGERS
from kdtable.execution.loggers.base import Ending, LoggedRun, scalars
from kdtable.hardware import available_cores
from kdtable.recipes.record import EpochRecord
from kdtable.store import Store
from tests.cli.command import (
    SMALL,
    TEACHER,
    Call,
    Shell,
    assert_refused,
    assert_same_numbers,
    finish,
    listing,
    runs_in,
    wait_for,
    write_images,
    write_teacher,
)
from tests.faults.forks import Forks

PAIR = ("run", "--pairs", "resnet14:resnet8", *SMALL, *TEACHER)
GRID = (*PAIR, "--methods", "vanilla,at", "--epochs", "2")
LONG = (*PAIR, "--methods", "vanilla,at", "--epochs", "4")
LOG = ("--log", "tensorboard")

#: Numbers of a run by name, each with its steps.
Points = dict[str, list[tuple[int, float]]]


def expected(results: Path, run: str) -> Points:
    """What is to be logged of a run, from the store."""
    found: Points = {}
    with closing(Store(results, create=False)) as store:
        for step, record in enumerate(store.history(run), 1):
            numbers = {"train/loss": record.train_loss, "lr": record.lr, "seconds": record.seconds}
            numbers |= {f"loss/{name}": value for name, value in record.terms.items()}
            for name, value in record.metrics.items():
                numbers["train/top1" if name == "train-top1" else f"test/{name}"] = value
            for name, value in numbers.items():
                found.setdefault(name, []).append((step, value))
    return found


def text(results: Path, run: str, name: str) -> str:
    """The one text of that name."""
    # The reader behind TensorBoard's own pages: the plain one keeps texts that a later writer replaced.
    found = plugin_event_accumulator.EventAccumulator(str(results / "logs" / "tensorboard" / run))
    found.Reload()
    (event,) = found.Tensors(f"{name}/text_summary")
    written: bytes = event.tensor_proto.string_val[0]
    return written.decode()


def points(results: Path, run: str) -> Points:
    found = EventAccumulator(str(results / "logs" / "tensorboard" / run))
    found.Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def assert_equal(logged: Points, stored: Points) -> None:
    assert logged.keys() == stored.keys()
    for name, wanted in stored.items():
        assert [step for step, _ in logged[name]] == [step for step, _ in wanted], name
        # TensorBoard keeps float32.
        assert [value for _, value in logged[name]] == pytest.approx([value for _, value in wanted], rel=1e-6), name


def assert_all_logged(results: Path) -> None:
    """TensorBoard has every epoch of the store once."""
    runs = runs_in(results)
    assert {path.name for path in (results / "logs" / "tensorboard").iterdir()} == {*runs, "table"}
    for run in runs:
        assert_equal(points(results, run), expected(results, run))


# --- TensorBoard -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a grid that was logged; nothing may change it."""
    folder = tmp_path_factory.mktemp("logged")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    done = forks.run(folder, *GRID, *LOG)
    assert done.code == 0, done.err
    assert len(done.errors) == 5, "a cohort and four epochs"
    return folder


def test_tensorboard_has_what_the_store_has(logged: Path) -> None:
    results = logged / "results"
    assert_all_logged(results)
    names = {name for run in runs_in(results) for name in points(results, run)}
    assert {"train/loss", "loss/ce", "loss/at", "lr", "seconds", "test/top1", "train/top1"} <= names


def test_logging_changes_no_number(logged: Path, call: Call, tiny: Path) -> None:
    assert call(*GRID).code == 0
    assert_same_numbers(tiny / "results", logged / "results")
    assert not (tiny / "results" / "logs").exists()


def test_tensorboard_says_what_a_run_is(logged: Path) -> None:
    for run, stored in runs_in(logged / "results").items():
        config = json.loads(text(logged / "results", run, "run"))
        shown = [config[name] for name in ("run", "pair", "row", "seed", "paper")]
        assert shown == [run, "resnet14:resnet8", stored["row"], 1, "crd"]
        assert config["recipe"]["batch_size"] == 16
        assert config["terms"][0][0] == "ce"


def test_a_larger_grid_replaces_the_table(logged: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True)
    assert text(tmp_path / "results", "table", "table").rstrip() in call("report", "--format", "markdown").out
    assert call(*GRID, *LOG, "--seeds", "2").code == 0
    table = text(tmp_path / "results", "table", "table")
    assert "over 2 seeds" in table
    assert table.rstrip() in call("report", "--format", "markdown").out


def test_a_repeated_command_logs_nothing(logged: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True)
    before = listing(tmp_path / "results" / "logs")
    assert call(*GRID, *LOG).code == 0
    assert listing(tmp_path / "results" / "logs") == before


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a command that logs was killed after its first epochs."""
    folder = tmp_path_factory.mktemp("killed")
    write_images(folder / "tiny.npz", train=160)
    write_teacher(folder / "resnet14.pth")
    command = Shell(folder).start(*LONG, *LOG)
    try:
        wait_for("at seed 1 main epoch 1/4", command)
    finally:
        command.kill()
    assert finish(command).code == -signal.SIGKILL
    return folder


@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_command_goes_on_without_double_points(
    killed: Path, damaged: bool, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    for checkpoint in (tmp_path / "results").glob("runs/*/checkpoint.pt") if damaged else ():
        checkpoint.write_bytes(b"half")  # so that the run begins again at its first epoch
    done = call(*LONG, *LOG)
    assert done.code == 0, done.err
    assert ("vanilla seed 1 main epoch 1/4" in done.err) == damaged
    assert_all_logged(tmp_path / "results")


def test_epochs_that_were_not_logged_are_logged_when_the_run_goes_on(killed: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results" / "logs")
    assert call(*LONG, *LOG).code == 0
    assert_all_logged(tmp_path / "results")


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_worker_processes_are_logged_too(shell: Shell, tiny: Path) -> None:
    done = shell.run(*GRID, "--seeds", "2", "--jobs", "2", *LOG)
    assert done.code == 0, done.err
    assert len(runs_in(tiny / "results")) == 4
    assert_all_logged(tiny / "results")


# --- what is refused, and what fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "parts"),
    {
        "tensorbord": ("unknown logger 'tensorbord'", "did you mean tensorboard?"),
        "tensorboard,x": ("unknown logger 'x'", "tensorboard, wandb"),
        "": ("--log", "one or several of tensorboard, wandb, mlflow"),
        ",": ("--log", "one or several of"),
    }.items(),
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_unknown_logger(names: str, parts: Sequence[str], more: Sequence[str], call: Call, tiny: Path) -> None:
    before = listing(tiny)
    assert_refused(call(*GRID, "--log", names, *more), *parts)
    assert listing(tiny) == before


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package(name: str, call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", f"kdtable.execution.loggers.{name}"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    before = listing(tiny)
    assert_refused(call(*GRID, "--log", name), f"--log {name} needs a package", f"pip install 'kdtable[{name}]'")
    assert listing(tiny) == before


def test_logs_that_cannot_be_written(logged: Path, call: Call, tiny: Path) -> None:
    (tiny / "results").mkdir()
    (tiny / "results" / "logs").write_text("a file")
    done = call(*GRID, *LOG)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    (said,) = (line for line in done.errors if "logging" in line)
    assert said.startswith("logging to tensorboard failed and is off from here on, while training goes on: ")
    assert_same_numbers(tiny / "results", logged / "results")


class Notes:
    """A logger that keeps what it receives, and raises ``error`` at a step."""

    error: BaseException | None = None
    calls: list[tuple[Any, ...]]

    def __init__(self, folder: Path) -> None:
        type(self).calls = []

    def begin(self, run: LoggedRun, history: Sequence[EpochRecord]) -> None:
        self.calls.append(("begin", run.id, len(history)))

    def epoch(self, run: str, step: int, record: EpochRecord) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("epoch", run, step))

    def end(self, run: str, how: Ending) -> None:
        self.calls.append(("end", run, how))

    def table(self, markdown: str) -> None:
        self.calls.append(("table",))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Notes]]:
    monkeypatch.setitem(LOGGERS.targets, "notes", Notes)
    monkeypatch.setattr(Notes, "error", None)
    return Notes


def test_what_a_logger_receives(notes: type[Notes], call: Call, tiny: Path) -> None:
    assert call(*GRID, "--log", "notes").code == 0
    assert notes.calls[-1] == ("table",)
    for run in runs_in(tiny / "results"):
        own = [(name, *more) for name, about, *more in notes.calls[:-1] if about == run]
        assert own == [("begin", 1), ("epoch", 2), ("end", "done")]


def test_a_logger_that_fails_is_switched_off_alone(notes: type[Notes], call: Call, tiny: Path) -> None:
    notes.error = ValueError("no room\nat all")
    done = call(*GRID, "--log", "notes,tensorboard")
    assert done.code == 0, done.err
    (said,) = (line for line in done.errors if "logging" in line)
    assert said == "logging to notes failed and is off from here on, while training goes on: no room"
    assert [name for name, *_ in notes.calls] == ["begin", "begin"]
    assert_all_logged(tiny / "results")


def test_an_interruption_ends_the_runs_in_the_logs(notes: type[Notes], call: Call, tiny: Path) -> None:
    notes.error = KeyboardInterrupt()
    done = call(*GRID, "--log", "notes")
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert {how for name, *_, how in notes.calls if name == "end"} == {"interrupted"}


def test_a_store_that_cannot_be_read_ends_logging(
    notes: type[Notes], call: Call, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("kdtable.execution.loggers.logged.Store.history", unread)
    done = call(*GRID, "--log", "notes")
    assert done.err.count("logging to notes failed") == 1, done.err
    assert notes.calls == []


def test_scalars_of_an_epoch() -> None:
    record = EpochRecord("main", 1, 0.1, 2.0, {"top1": 0.5, "train-top1": 0.6}, {"ce": 1.5}, 3.0, 1, test_loss=1.25)
    assert scalars(record) == {
        "train/loss": 2.0, "lr": 0.1, "seconds": 3.0, "loss/ce": 1.5, "test/loss": 1.25, "test/top1": 0.5,
        "train/top1": 0.6,
    }  # fmt: skip


def test_help_says_what_can_be_logged(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, _, files = call("run", "--help").out.partition("─ Files ─")
    assert "--log" in files
    assert "tensorboard, wandb, mlflow" in files
