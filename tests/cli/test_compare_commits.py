"""``scripts/compare_commits`` finds what differs between two commits' results, and only that."""

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kdtable import papers
from tests.cli.command import SMALL, Call, write_images

ROOT = Path(__file__).parents[2]
RUN = ("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla", "--seeds", "1", "--epochs", "1", *SMALL)

#: Called with the words of a command line; its exit code, and what it printed on stdout and stderr.
Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return import_module


@pytest.fixture
def compare(load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> Compare:
    script = load("compare_commits")

    def compared(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            sys.exit(script.main(words))
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return compared


@pytest.fixture
def trained(call: Call, tmp_path: Path) -> Path:
    """A store of one run in the folder ``one``."""
    write_images(tmp_path / "tiny.npz")
    assert call(*RUN, "--results", "one").code == 0
    return tmp_path


def unequal(printed: str) -> list[str]:
    return [line.partition("UNEQUAL ")[2] for line in printed.splitlines() if "UNEQUAL" in line]


def counts(printed: str, case: str) -> list[int]:
    (row,) = (line for line in printed.splitlines() if re.match(rf"\W+{case} ", line))
    return [int(number) for number in re.findall(r"\d+", row)]


def flip_bit(file: Path, tensor: torch.Tensor) -> None:
    """The lowest of a tensor's first number, in a file that is neither compressed nor read with checksums."""
    content, stored = file.read_bytes(), tensor.numpy().tobytes()
    start = content.index(stored)
    file.write_bytes(content[:start] + bytes([stored[0] ^ 1]) + content[start + 1 :])


def test_a_commit_trains_to_the_bits_of_its_own_checkout(tmp_path: Path) -> None:
    """In a repository of its own: whatever is changed in this one while the tests run."""
    repository = tmp_path / "repository"
    for name in ("kdtable", "scripts"):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Begin"]):
        subprocess.run([*git, *words], check=True)
    command = [sys.executable, str(repository / "scripts" / "compare_commits.py"), "HEAD", "--cases", "folder"]
    done = subprocess.run([*command, "--cache", "cache"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs, done_runs, epochs, numbers, tensors, differences, *_ = counts(done.stdout, "folder")
    assert (runs, done_runs, epochs, differences) == (2, 2, 2, 0)
    assert numbers >= 5 * epochs
    assert tensors > 100
    assert len(list((tmp_path / "cache").glob("*/folder-*"))) == 1
    left = subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True)
    assert len(left.stdout.splitlines()) == 1


def test_another_learning_rate_is_found(trained: Path, call: Call, compare: Compare) -> None:
    assert call(*RUN, "--lr", "0.06", "--results", "two").code == 0
    code, printed, _ = compare("--stores", "one", "two", "--show", "1000")
    assert code == 1
    found = unequal(printed)
    assert "one: none:resnet8 vanilla seed 1, main epoch 1, lr: 0.05 here, 0.06 there" in found
    assert any(" tensor conv1.weight: " in text for text in found)
    assert counts(printed, "stores")[5] == len(found)


def test_equal_stores_are_equal_until_one_bit_changes(
    trained: Path, compare: Compare, load: Callable[[str], ModuleType]
) -> None:
    shutil.copytree(trained / "one", trained / "two")
    code, printed, _ = compare("--stores", "one", "two")
    assert (code, unequal(printed)) == (0, [])
    (file,) = (trained / "two" / "runs").glob("*/student.*")
    flip_bit(file, load("compare_readers").read_tensors(file)["bn1.weight"])
    code, printed, _ = compare("--stores", "one", "two")
    (only,) = unequal(printed)
    assert code == 1
    assert only.startswith("one: none:resnet8 vanilla seed 1: tensor bn1.weight: 1 of 16 numbers differ, by ")


def test_a_run_without_counterpart_is_found(trained: Path, compare: Compare) -> None:
    shutil.copytree(trained / "one", trained / "two")
    with closing(sqlite3.connect(next((trained / "two").glob("*.sqlite")))) as db, db:
        db.execute("update runs set seed = 2")
    code, printed, _ = compare("--stores", "one", "two")
    assert code == 1
    assert unequal(printed) == [
        "one: none:resnet8 vanilla seed 1: only here",
        "one: none:resnet8 vanilla seed 2: only there",
        "one: no run is done on both sides, so nothing was compared",
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("no-such-commit",), "no-such-commit"),
        ((), "name one commit"),
        (("HEAD", "--cases", "folder,nothing"), "nothing"),
        (("HEAD", "--baseline"), "--cache"),
        (("HEAD", "--cases", "excerpt", "--shared", "nowhere"), "no case is left"),
        (("--stores", "nowhere", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(words: tuple[str, ...], part: str, compare: Compare) -> None:
    code, printed, told = compare(*words)
    assert (code, printed) == (2, "")
    assert part in told.splitlines()[-1]
    assert told.splitlines()[-1].startswith("compare_commits: ")


def test_a_store_of_an_unknown_form_is_refused(tmp_path: Path, compare: Compare) -> None:
    with closing(sqlite3.connect(tmp_path / "new.sqlite")) as db, db:
        db.execute("create table runs (id text, metrics text)")
    code, _, told = compare("--stores", str(tmp_path), str(tmp_path))
    assert code == 2
    assert "compare_readers.py" in told


def test_every_row_of_every_paper_is_a_case(load: Callable[[str], ModuleType]) -> None:
    asked = {paper: set(rows.split(",")) for paper, (rows, _) in load("compare_cases").PAPERS.items()}
    younger = {name for name in papers.names() if papers.load(name).task != "classification"} | {
        "zoo",
        "mlkd",
        "crd-transfer",
    }
    assert asked.keys() == set(papers.names()) - younger
    for paper, rows in asked.items():
        assert set(papers.load(paper).rows) <= rows
