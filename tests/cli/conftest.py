import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kdtable.cli import main
from tests.cli.command import (
    FOREIGN,
    PROXIES,
    SMALL,
    SMALL_CRD,
    Call,
    Done,
    Shell,
    last_of_each,
    write_images,
    write_teacher,
)
from tests.faults.forks import Forks
from tests.teachers.teacher_site import Site, open_site


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host but loopback is ever asked, and the user's own settings change nothing."""
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A command called inside this process fixes the number of threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command inside this process, in the test's folder: much quicker than a process of its own."""
    monkeypatch.chdir(tmp_path)

    def called(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["kdtable", *last_of_each(args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, out, err)

    return called


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs the command as a process, in the test's folder."""
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set and an untrained teacher for it."""
    folder = tmp_path_factory.mktemp("supplies")
    write_images(folder / "tiny.npz")
    write_teacher(folder / "resnet14.pth")
    return folder


@pytest.fixture
def tiny(supplies: Path, tmp_path: Path) -> Path:
    """The test's folder, with a data set ``tiny.npz`` and a teacher ``resnet14.pth`` in it."""
    shutil.copytree(supplies, tmp_path, dirs_exist_ok=True)
    return tmp_path


@dataclass(frozen=True)
class Grid:
    """A folder in which a teacher and then a grid were trained, by processes of their own."""

    folder: Path
    trained: Done
    ran: Done


#: Without --seeds.
GRID = (
    *("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla,kd,at,crd,crd+kd", "--epochs", "2"),
    *(*SMALL, *SMALL_CRD),
)


@pytest.fixture(scope="session")
def grid(supplies: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """Five methods, two seeds, two epochs; nothing may change it."""
    folder = tmp_path_factory.mktemp("grid")
    shutil.copy(supplies / "tiny.npz", folder)
    trained = forks.run(folder, "train-teachers", "resnet14", "--epochs", "2", *SMALL)
    return Grid(folder, trained, forks.run(folder, *GRID, "--seeds", "2"))


@pytest.fixture
def after_grid(grid: Grid, tmp_path: Path) -> Path:
    """The test's folder, as the grid left its own."""
    shutil.copytree(grid.folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def site() -> Iterator[Site]:
    """A web site on loopback."""
    with open_site() as opened:
        yield opened
