import re
from pathlib import Path

import pytest

from tests.cli.command import Call, Done, Shell

COMMANDS = ("run", "report", "status", "list", "fetch-teachers", "check-teachers", "train-teachers")


def test_version(shell: Shell) -> None:
    done = shell.run("--version")
    assert done.code == 0
    assert re.fullmatch(r"kdtable \d+\.\d+\.\d+\S*\n", done.out)


def test_help_names_every_command(shell: Shell) -> None:
    done = shell.run("--help")
    assert done.code == 0
    assert "Example" in done.out
    assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str, call: Call) -> None:
    done = call(command, "--help")
    assert done.code == 0
    assert f"Example: kdtable {command}" in " ".join(done.out.split())


def test_without_a_command_there_is_help(call: Call) -> None:
    done = call()
    assert "Usage" in done.out + done.err
    assert "run" in done.out + done.err


@pytest.mark.parametrize("command", ["--help", "run", "check-teachers"])
def test_help_does_not_import_torch(command: str, shell: Shell) -> None:
    done = shell.run(*{command, "--help"}, python=("-X", "importtime"))
    assert done.code == 0
    _assert_without_torch(done)


@pytest.mark.parametrize(
    "words",
    [("report",), ("report", "--table", "crd-1", "--compare"), ("report", "--by-seed"), ("status",), ("list", "pairs")],
    ids=" ".join,
)
def test_reading_the_store_does_not_import_torch(words: tuple[str, ...], after_grid: Path) -> None:
    done = Shell(after_grid).run(*words, python=("-X", "importtime"))
    assert done.code == 0
    _assert_without_torch(done)


def _assert_without_torch(done: Done) -> None:
    imported = {line.rpartition("|")[2].strip() for line in done.errors if line.startswith("import time:")}
    assert "kdtable.cli" in imported
    assert not {name for name in imported if name == "torch" or name.startswith("torch.")}


def test_a_usage_error_is_a_bad_request(call: Call, tmp_path: Path) -> None:
    """What the option parser refuses is worded by it."""
    for words in (("nonsense",), ("run", "--pairs", "all"), ("run", "--epochs", "x"), ("train-teachers",)):
        done = call(*words)
        assert done.code == 2
        assert "Traceback" not in done.err
        assert done.err != ""
    assert not list(tmp_path.iterdir())
