"""What is killed besides the training of grids: called again, it ends as if nothing had happened."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import (
    SMALL,
    TEACHER,
    assert_same_numbers,
    epochs_in,
    listing,
    write_images,
    write_teacher,
)
from tests.faults.forks import Forks
from tests.faults.points import CACHE, COPY, DOWNLOAD, INSTALLATION, PRUNE
from tests.teachers.teacher_site import Reply, Site, open_site

RUN = ("run", "--pairs", "resnet14:resnet8", "--epochs", "1", *SMALL, *TEACHER)


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supplies")
    write_images(folder / "tiny.npz", train=32, test=8)
    write_teacher(folder / "resnet14.pth")
    write_teacher(folder / "resnet56.pth", network="resnet56", classes=100)
    return folder


@pytest.fixture(scope="module")
def site(supplies: Path) -> Iterator[Site]:
    with open_site() as opened:
        opened.answers("/cifar100/resnet56.pth", Reply((supplies / "resnet56.pth").read_bytes()))
        yield opened


def _killed_and_called_again(forks: Forks, folder: Path, words: tuple[str, ...], point: str) -> None:
    killed = forks.run(folder, *words, fault=point)
    assert killed.code == -signal.SIGKILL, f"'{point}' was not reached ({killed.code}):\n{killed.err}{killed.out}"
    done = forks.run(folder, *words)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def fetched(forks: Forks, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fetched")
    done = forks.run(folder, *_fetch(site))
    assert done.code == 0, done.err
    return folder


def _fetch(site: Site) -> tuple[str, ...]:
    return ("fetch-teachers", "cifar100/resnet56", "--mirror", site.url, "--allow-unverified")


@pytest.mark.parametrize("point", DOWNLOAD)
def test_a_download(forks: Forks, site: Site, fetched: Path, tmp_path: Path, point: str) -> None:
    _killed_and_called_again(forks, tmp_path, _fetch(site), point)
    assert listing(tmp_path) == listing(fetched)


@pytest.fixture(scope="module")
def taught(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a teacher was trained."""
    folder = tmp_path_factory.mktemp("taught")
    shutil.copy(supplies / "tiny.npz", folder)
    done = forks.run(folder, *TRAIN)
    assert done.code == 0, done.err
    return folder


TRAIN = ("train-teachers", "resnet8", "--epochs", "1", *SMALL)


@pytest.mark.parametrize("point", INSTALLATION)
def test_a_trained_teacher_on_its_way(forks: Forks, taught: Path, tmp_path: Path, point: str) -> None:
    shutil.copytree(taught, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "teachers")
    _killed_and_called_again(forks, tmp_path, TRAIN, point)
    assert listing(tmp_path / "teachers") == listing(taught / "teachers")
    assert_same_numbers(tmp_path / "results", taught / "results")


@pytest.fixture(scope="module")
def cached(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a student was trained, and its teacher's outputs were kept."""
    folder = tmp_path_factory.mktemp("cached")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    done = forks.run(folder, *KEEP_VIEWS)
    assert done.code == 0, done.err
    return folder


KEEP_VIEWS = (*RUN, "--methods", "kd", "--teacher-cache", "fp32")


@pytest.mark.parametrize("point", CACHE)
def test_a_cache_of_a_teachers_outputs(forks: Forks, supplies: Path, cached: Path, tmp_path: Path, point: str) -> None:
    shutil.copytree(supplies, tmp_path, dirs_exist_ok=True)
    _killed_and_called_again(forks, tmp_path, KEEP_VIEWS, point)
    assert listing(tmp_path / "views") == listing(cached / "views")
    assert_same_numbers(tmp_path / "results", cached / "results")


@pytest.fixture(scope="module")
def whole(forks: Forks, supplies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that keeps every epoch's checkpoint, and a copy of it that was not disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(supplies, folder, dirs_exist_ok=True)
    for words in (
        (*RUN, "--methods", "vanilla,kd", "--epochs", "2", "--keep", "all"),
        (*COPY_STORE[:3], "undisturbed"),
    ):
        done = forks.run(folder, *words)
        assert done.code == 0, done.err
    return folder


COPY_STORE = ("store", "copy", "results", "copied")


@pytest.mark.parametrize("point", COPY)
def test_a_store_on_its_way_into_another(forks: Forks, whole: Path, tmp_path: Path, point: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    _killed_and_called_again(forks, tmp_path, COPY_STORE, point)
    assert_same_numbers(tmp_path / "copied", tmp_path / "undisturbed")
    assert listing(tmp_path / "copied").keys() == listing(tmp_path / "undisturbed").keys()
    assert forks.run(tmp_path, "store", "check", "--results", "copied").out == "all is well\n"


@pytest.mark.parametrize("point", PRUNE)
def test_a_store_that_is_pruned(forks: Forks, whole: Path, tmp_path: Path, point: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    _killed_and_called_again(forks, tmp_path, ("store", "prune", "--keep", "last", "--yes"), point)
    assert epochs_in(tmp_path / "results") == epochs_in(whole / "results")
    left = {file.name for file in (tmp_path / "results").glob("runs/**/*") if file.is_file()}
    assert left == {"student.safetensors"}
    assert forks.run(tmp_path, "store", "check").out == "all is well\n"
