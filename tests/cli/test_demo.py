"""``kdtable demo``."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.cli.command import Call, runs_in


def test_the_demo_prints_a_table_and_commands_that_work(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sys.modules["kdtable.cli.demo"]  # kdtable.cli.demo is the command
    for name, less in (("ROWS", "vanilla,kd"), ("SEEDS", "2"), ("TEACHER_EPOCHS", 1), ("EPOCHS", 1)):
        monkeypatch.setattr(module, name, less)
    done = call("demo", "a place")
    assert done.code == 0, done.err
    assert "digits-few" in done.out
    assert "was trained on digits" not in done.err
    runs = runs_in(tmp_path / "a place" / "results")
    assert sorted(str(run["row"]) for run in runs.values() if run["data"] == "digits-few") == sorted(
        2 * ["vanilla", "kd"]
    )
    commands = re.findall(r"^  kdtable (.*?)    # ", done.out.replace("\\\n", " "), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["show", "report", "run", "list"]
    for command in commands:
        done = call(*shlex.split(command))
        assert done.code == 0, done.err
    assert Path("report.html").stat().st_size > 10_000
    again = call("demo", "a place")
    assert again.code == 0, again.err
    assert "epoch" not in again.err
