"""The wheel, installed where the repository is not."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=REPOSITORY, check=True)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, in an environment that has the wheel, and finds its dependencies where these tests do."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place)
    python = place / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    (packages,) = place.glob("lib/*/site-packages")
    # A folder in a .pth file adds its packages, but not its own .pth files: the repository stays invisible.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin" / "kdtable"


def test_the_wheel_has_all_files_that_the_code_reads(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = (
        path for path in (REPOSITORY / "kdtable").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    assert {str(path.relative_to(REPOSITORY)) for path in wanted} <= inside
    assert not [name for name in inside if name.startswith("tests/")]


def use(command: Path, folder: Path) -> None:
    """Train, report and look things up with an installed command."""

    def say(*arguments: str) -> str:
        return subprocess.run(
            [command, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
        ).stdout

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert say("--version") == "kdtable 0.1.0\n"
    assert "crd-1" in say("list", "tables")
    assert "resnet20" in say("report", "--table", "crd-1", "--compare")
    small = ("--epochs", "1", "--data", "digits-few", "--batch-size", "50", "--device", "cpu")
    assert "student" in say("run", "--pairs", "resnet20:resnet8", "--methods", "vanilla", "--seeds", "1", *small)
    say("report", "--format", "html", "-o", "report.html")
    assert "<svg" in (folder / "report.html").read_text("utf-8")


def test_the_installed_command_works_without_the_repository(installed: Path, tmp_path: Path) -> None:
    use(installed, tmp_path)


@pytest.mark.slow
def test_an_install_of_all_dependencies_works(built: Path, tmp_path: Path) -> None:
    """As a user installs it: pip fetches what ``pyproject.toml`` names, torch too, and nothing else is there."""
    venv.create(tmp_path / "environment", with_pip=True)
    scripts, (wheel,) = tmp_path / "environment" / "bin", built.glob("*.whl")
    subprocess.run([scripts / "python", "-m", "pip", "install", "--quiet", f"{wheel}[figures,onnx]"], check=True)
    use(scripts / "kdtable", tmp_path)
    run, *_ = (path.name for path in (tmp_path / "results" / "runs").iterdir())
    for words in (("plot", "curves", "-o", "curves.pdf"), ("export", run, "-o", "student.onnx")):
        subprocess.run([scripts / "kdtable", *words], cwd=tmp_path, check=True)


def test_the_citation_is_of_this_version() -> None:
    version = next(
        line for line in (REPOSITORY / "CITATION.cff").read_text().splitlines() if line.startswith("version: ")
    )
    assert f'version = "{version.removeprefix("version: ")}"' in (REPOSITORY / "pyproject.toml").read_text()
