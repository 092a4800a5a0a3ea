import re
from pathlib import Path

import pytest

from tests.cli.command import Call, Done, Shell

COMMANDS = (
    *("run", "report", "status", "list", "fetch-data", "fetch-teachers", "check-teachers", "train-teachers"),
    *("train-heads", "show", "export", "store copy", "store merge", "store check", "store prune", "store remove"),
    *("new method", "new network", "new paper"),
)


def test_version(shell: Shell) -> None:
    done = shell.run("--version")
    assert done.code == 0
    assert re.fullmatch(r"kdtable \d+\.\d+\.\d+\S*\n", done.out)


def test_help_names_every_command(shell: Shell) -> None:
    done = shell.run("--help")
    assert done.code == 0
    assert "Example" in done.out
    assert all(command.partition(" ")[0] in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = call(*command.split(), "--help")
    assert done.code == 0
    assert re.search(f"Examples?: kdtable {command} ", " ".join(done.out.split()))
    assert f"Usage: kdtable {command}" in done.out


def test_the_help_of_run_begins_with_three_examples(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    examples, _, _ = call("run", "--help").out.partition("What the store has")
    lines = [line.strip() for line in examples.splitlines()]
    assert sum(line.startswith("kdtable run --pairs ") for line in lines) == 3


def test_help_fills_its_lines(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paragraphs are broken where the terminal ends, not where the source does."""
    monkeypatch.setenv("COLUMNS", "100")
    text = call("fetch-teachers", "--help").out
    broken = next(line for line in text.splitlines() if "A broken download" in line)
    assert len(broken.rstrip()) > 80


def test_options_stand_in_groups(call: Call) -> None:
    lines = call("run", "--help").out.splitlines()
    groups = [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]
    assert groups == ["Options", "What", "Recipe", "Devices and speed", "Files", "Advanced"]


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
    [
        ("report",),
        ("report", "--table", "crd-1", "--compare"),
        ("report", "--by-seed"),
        ("status",),
        ("list", "pairs"),
        ("show", "tiny:kd:resnet8", "--curves"),
    ],
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
