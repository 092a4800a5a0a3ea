"""``--golden DIR``: cases of any name are run, and what is wrong or left out fails by its name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.golden_data import OWN, Entry, Root, entries
from tests.golden_session import pytest_configure, pytest_runtest_makereport

REPOSITORY = OWN.parents[1]
#: Of Channel Distillation: small ones that are soon checked.
KINDS = ("kd", "gkd", "lr_schedule")


def renamed(to: Path) -> list[dict[str, Any]]:
    """Some of our own cases under other names, the last one first."""
    to.mkdir()
    chosen = [entry for entry in entries(OWN / "cd") if entry.kind in KINDS]
    cases = []
    for number, entry in enumerate(reversed(chosen)):
        cases.append({**entry.data, "name": f"any name {number}", "file": f"{number}.npz"})
        (to / f"{number}.npz").write_bytes((entry.folder / entry.data["file"]).read_bytes())
    write(to, cases)
    return cases


def write(to: Path, cases: list[dict[str, Any]]) -> None:
    (to / "manifest.json").write_text(json.dumps({"format": 1, "cases": cases}))


def change(path: Path, name: str) -> None:
    """One number of an array."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays[name].flat[-1] *= 1.001
    np.savez(path, **arrays)


def run(folder: Path, *more: str) -> tuple[int, str]:
    """The tests of one method with these sets: status, and what was printed."""
    tests = REPOSITORY / "tests" / "methods" / "test_golden_cd.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(tests),
        f"--golden={folder}",
        "-rfs",
        "-p",
        "no:cacheprovider",
        *more,
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=REPOSITORY, env=clean, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_renamed_cases_pass_and_other_sets_are_skipped(tmp_path: Path) -> None:
    cases = renamed(tmp_path / "cd")
    status, said = run(tmp_path, "-vv")
    assert status == 0, said
    for case in cases:
        assert f"[{case['name']}] PASSED" in said
    assert f"{tmp_path} has no case of crd" in said
    assert f"{tmp_path} has no case of cd of kind cd_loss" in said


def test_what_is_wrong_or_left_out_fails_by_its_name(tmp_path: Path) -> None:
    cases = renamed(tmp_path / "cd")
    change(tmp_path / "cd" / cases[0]["file"], "out/lr")
    write(tmp_path / "cd", [*cases, {**cases[1], "name": "something new", "kind": "unheard-of"}])
    (tmp_path / "cd" / "stray.npz").write_bytes(b"")
    (tmp_path / "newest").mkdir()
    write(tmp_path / "newest", [{"id": "case of tomorrow", "method": "tomorrow"}])
    status, said = run(tmp_path)
    assert status == 1
    failures = [line for line in said.splitlines() if line.startswith("FAILED")]
    assert len(failures) == 4, said
    for name in (f"[{cases[0]['name']}]", "something new (unheard-of)", "cd/stray.npz", "golden [newest]"):
        assert any(name in failure for failure in failures), said
    assert "the set 'newest' was not run, this version has no check for it. Its cases: case of tomorrow" in said


class Config:
    """What pytest is asked for."""

    def __init__(self, golden: Path) -> None:
        self.option = self.invocation_params = SimpleNamespace(golden=str(golden), dir=golden)

    def getoption(self, name: str) -> object:
        return getattr(self.option, name)


def test_a_folder_without_sets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("path", "is_given"):
        monkeypatch.setattr(Root, name, getattr(Root, name))
    with pytest.raises(pytest.UsageError, match="there is no set"):
        pytest_configure(Config(tmp_path))  # type: ignore[arg-type]


def test_a_case_that_is_skipped_has_failed() -> None:
    entry = Entry(OWN / "cd", "cases", 0, {"name": "some case"})
    item = SimpleNamespace(callspec=SimpleNamespace(params={"entry": entry}))
    hook = pytest_runtest_makereport(item)  # type: ignore[arg-type]
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(SimpleNamespace(skipped=True, outcome="skipped", longrepr=""))  # type: ignore[arg-type]
    assert ended.value.value.outcome == "failed"
    assert "some case" in ended.value.value.longrepr
