"""Plug-ins on the command line: trained beside built-in methods, edited, told apart; and how they fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdtable import plugins
from tests.cli.command import SMALL, TEACHER, Call, Done, Shell, assert_refused, runs_in
from tests.cli.conftest import Grid
from tests.faults.forks import Forks
from tests.plugins.written import DATA, METHOD, NETWORK, write

ROWS = ("run", "--pairs", "resnet14:resnet8", "--methods", "kd,near", *TEACHER, *SMALL, "--epochs", "1")


@pytest.fixture(scope="module")
def trained(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """A plug-in's method beside kd, two seeds; then again after an edit."""
    folder = tmp_path_factory.mktemp("plugged")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    write(folder / "near.py", METHOD)
    first = forks.run(folder, *ROWS, "--seeds", "2", "--plugin", "near.py")
    write(folder / "near.py", METHOD.replace("scale: float = 1.0", "scale: float = 3.0"))
    return Grid(folder, first, forks.run(folder, *ROWS, "--seeds", "2", "--plugin", "near.py"))


@pytest.fixture
def after(trained: Grid, tmp_path: Path) -> Path:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_it_is_trained_and_an_edited_file_trains_its_row_alone_anew(trained: Grid) -> None:
    assert trained.trained.code == trained.ran.code == 0, trained.trained.err + trained.ran.err
    assert "near" in trained.trained.out
    runs = runs_in(trained.folder / "results").values()
    assert sorted((run["row"], run["seed"], run["status"]) for run in runs) == [
        *(("kd", seed, "done") for seed in (1, 2)),
        *(("near", seed, "done") for seed in (1, 1, 2, 2)),
    ]
    sources = {run["identity"]["method"].get("source") for run in runs}  # type: ignore[index]
    assert len(sources) == 3
    assert None in sources
    assert "cohort 1/2: seed 1, 1 run of resnet8 with teacher resnet14: near" in trained.ran.err


def test_worker_processes_train_it(after: Path, tiny: Path, shell: Shell) -> None:
    write(tiny / "near.py", METHOD)
    done = shell.run(*ROWS, "--seeds", "2", "--plugin", "near.py", "--jobs", "2", "--results", "again")
    assert done.code == 0, done.err
    assert runs_in(tiny / "again").keys() < runs_in(after / "results").keys(), "with the first file's runs"
    assert {run["status"] for run in runs_in(tiny / "again").values()} == {"done"}


def test_tables_status_and_show_tell_both_apart(after: Path, call: Call) -> None:
    write(after / "kdtable.toml", '[plugins]\nfiles = ["near.py"]\n')
    runs = runs_in(after / "results")
    old, new = [run_id for run_id, run in runs.items() if (run["row"], run["seed"]) == ("near", 1)]  # oldest first
    hashes = [runs[run]["identity"]["method"]["source"] for run in (old, new)]  # type: ignore[index]
    table = call("report")
    assert all(f"near @{source[:8]}" in table.out for source in hashes)
    assert f"of source {hashes[0][:8]}; it is {hashes[1][:8]} now." in table.out
    status = call("status").out.replace("\n", " ")
    assert f"2 runs of source {hashes[0]} (near.py is {hashes[1]} now)".replace(" ", "") in status.replace(" ", "")
    assert f"2 runs of source {hashes[1]} (near.py as it is now)".replace(" ", "") in status.replace(" ", "")
    assert f"Method near was of source {hashes[0][:8]}" in " ".join(call("show", old).out.split())
    shown = call("show", new).out
    assert f"source {hashes[1]} (near.py as it is now)" in shown
    assert "--plugin near.py" in shown
    assert "--plugin FILE" in call("show", old).out
    cell = call("show", f"tiny:near @{hashes[1][:8]}:resnet14:resnet8").out
    assert new in cell
    assert old not in cell


def test_a_store_is_read_without_the_plug_in(after: Path, call: Call) -> None:
    assert "near @" in call("report").out
    assert "(not loaded: --plugin FILE)" in call("status").out.replace("\n", "")
    run = next(name for name, run in runs_in(after / "results").items() if run["row"] == "near")
    assert "name its plug-in with --plugin FILE" in " ".join(call("show", run).out.split())


def test_a_network_and_a_data_set_of_plug_ins(tiny: Path, call: Call) -> None:
    write(tiny / "both.py", DATA)
    write(tiny / "nets.py", NETWORK)
    named = ("--plugin", "both.py", "--plugin", "nets.py", "--data", "stripes", "--device", "cpu")
    small = (*named, "--batch-size", "16", "--epochs", "1")
    assert call("train-teachers", "small", *small).code == 0
    done = call("run", "--pairs", "small:smaller", "--methods", "vanilla,kd", "--seeds", "1", *small)
    assert done.code == 0, done.err
    assert "small:smaller" in done.out
    assert "stripes" in call("list", "datasets", "--plugin", "both.py").out
    plugins.unload()
    assert "smaller" in call("report").out
    run = next(name for name, run in runs_in(tiny / "results").items() if run["row"] == "kd")
    assert "--data stripes" in call("show", run).out


def test_its_methods_are_listed(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "near.py", METHOD)
    listed = call("list", "methods", "--plugin", "near.py").out
    assert "plug-ins" in listed
    assert "Rows of plug-ins, guests of every paper" in listed
    assert "1 ce + 2 near" in listed


def failed(done: Done, *parts: str) -> list[str]:
    """The lines before the last, which is the sentence that has all ``parts``."""
    assert (done.code, done.out) == (2, "")
    *before, last = done.errors
    assert last.startswith("kdtable: plug-in ")
    assert all(part in last for part in parts), last
    return before


def test_a_plug_in_that_fails_shows_its_own_traceback_and_then_a_sentence(tiny: Path, call: Call) -> None:
    write(tiny / "near.py", METHOD + "\n\ndef broken():\n    return missing\n\n\nbroken()\n")
    before = failed(call(*ROWS, "--plugin", "near.py"), "near.py cannot be imported (NameError: name 'missing'")
    assert before[0] == "Traceback (most recent call last):"
    assert "broken()" in before[2]
    assert before[-1] == "NameError: name 'missing' is not defined"
    assert not [line for line in before if "kdtable/" in line]
    assert not (tiny / "results").exists()


def test_a_file_that_is_no_python_shows_the_line(tiny: Path, call: Call) -> None:
    write(tiny / "near.py", "def broken(:\n")
    before = failed(call("status", "--plugin", "near.py"), "SyntaxError")
    assert any("def broken(:" in line for line in before)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (METHOD.replace('("near"', '("crd"'), ["there is a method 'crd' already"]),
        (METHOD.replace("def distillation", "def other"), ["has the term 'near' but no formula"]),
        ("import math\n", ["registers nothing"]),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_refused_in_a_sentence(
    text: str, parts: list[str], tiny: Path, call: Call
) -> None:
    write(tiny / "near.py", text)
    assert_refused(call(*ROWS, "--plugin", "near.py"), *parts)


def test_a_file_that_is_not_there(tiny: Path, call: Call) -> None:
    assert_refused(call(*ROWS, "--plugin", "gone.py"), "--plugin gone.py: there is no file")


def test_help_loads_no_plug_in(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "kdtable.toml", '[plugins]\nfiles = ["gone.py"]\n')
    assert call("run", "--help").code == 0
    assert_refused(call("status"), "there is no file")


NEW = {"method": ("my-own.1", "my_own_1.py"), "network": ("my-own.1", "my_own_1.py"), "paper": ("own", "own.toml")}


@pytest.mark.parametrize("kind", NEW)
def test_new_files_pass_their_own_tests_and_nothing_is_overwritten(kind: str, tmp_path: Path, call: Call) -> None:
    name, file = NEW[kind]
    done = call("new", kind, name, "--dir", "mine")
    assert done.code == 0, done.err
    test = tmp_path / "mine" / f"test_{Path(file).stem}.py"
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {file, test.name}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    passed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert passed.returncode == 0, passed.stdout
    assert " passed" in passed.stdout
    test.write_text("mine")
    (tmp_path / "mine" / file).unlink()
    assert_refused(call("new", kind, name, "--dir", "mine"), "exists already: choose another name or folder")
    assert test.read_text() == "mine"
    assert not (tmp_path / "mine" / file).exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("method", "kd"), "there is a method 'kd' already"),
        (("network", "resnet8"), "there is a network 'resnet8' already"),
        (("paper", "crd"), "there is a paper 'crd' already"),
        (("method", "a+b"), "'a+b' cannot be a name"),
        (("method", "3d"), "begins with a digit"),
    ],
)
def test_names_that_new_files_cannot_have(words: tuple[str, str], sentence: str, tmp_path: Path, call: Call) -> None:
    assert_refused(call("new", *words), sentence)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ranks_load_it_too(tiny: Path) -> None:
    write(tiny / "near.py", METHOD)
    words = [word for word in ROWS if word not in ("--device", "cpu")]
    done = Shell(tiny).run(*words, "--seeds", "1", "--plugin", "near.py", "--devices", "cpu,cpu")
    assert done.code == 0, done.err
    assert {run["status"] for run in runs_in(tiny / "results").values()} == {"done"}
