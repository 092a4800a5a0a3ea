"""``--pairs resnet8+resnet14:resnet8``, from two trained teachers to tables, killed on the way."""

import json
import shlex
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdtable import models
from kdtable.checkpoints import student
from kdtable.cli import main
from tests.cli.command import (
    FOREIGN,
    SMALL,
    Call,
    Shell,
    assert_refused,
    assert_same_numbers,
    finish,
    students_in,
    wait_for,
    write_images,
)

TEACHERS, PAIR = "resnet8+resnet14", "resnet8+resnet14:resnet8"
RUN = ("run", "--pairs", "resnet14+res8:resnet8", "--methods", "kd,at", "--seeds", "1", "--epochs", "1", *SMALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two trained teachers and the results of what they can teach, made inside this process."""
    folder, threads = tmp_path_factory.mktemp("several"), torch.get_num_threads()
    write_images(folder / "tiny.npz", train=96)
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        for words in (("train-teachers", "resnet8", "resnet14", *SMALL, "--epochs", "1", "--results", "taught"), RUN):
            patch.setattr(sys, "argv", ["kdtable", *words])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def reached(folder: Path) -> float:
    """Top-1 accuracy in percent of the mean probabilities, from the teachers' files and the test images alone."""
    with np.load(folder / "tiny.npz") as content:
        images, labels = torch.tensor(content["test_images"]).float() / 255, torch.tensor(content["test_labels"])
    probabilities = torch.zeros(len(labels), 4)
    for file in sorted(folder.glob("teachers/*/*.safetensors")):
        weights, origin = student.load(file)
        network = models.build(file.stem, 4, mean=origin.mean, std=origin.std).eval()
        network.load_state_dict(weights)
        with torch.no_grad():
            probabilities += network(images).logits.softmax(dim=1)
    return 100 * float((probabilities.argmax(dim=1) == labels).float().mean())


def test_tables_name_the_teachers_and_what_they_reach_together(folder: Path, call: Call) -> None:
    def report(*options: str) -> str:
        done = call("report", *options)
        assert done.code == 0, done.err
        return done.out

    assert f"N/A: at on {PAIR}, because at compares the maps of one teacher." in " ".join(report().split())
    (table,) = json.loads(report("--format", "json"))
    assert PAIR in json.dumps(table)
    (line,) = (line for line in report("--format", "markdown").splitlines() if line.startswith("| teacher"))
    assert f"{reached(folder):.2f}" in line
    latex = report("--format", "latex")
    assert TEACHERS in latex[latex.index("\nteacher &") : latex.index("\nstudent &")]
    report("--format", "html", "-o", "page.html")
    assert f"{TEACHERS} → resnet8" in (folder / "page.html").read_text()


def test_show_gives_the_command_of_that_run(folder: Path, call: Call) -> None:
    shown = call("show", "tiny:kd:resnet14+resnet8:resnet8")
    assert shown.code == 0, shown.err
    words = " ".join(shown.out.split())
    assert "weights of resnet8: run " in words
    assert "weights of resnet14: run " in words
    assert f"{reached(folder):.2f} %" in words
    command = words[words.index("kdtable run") :].partition(" data ")[0]
    assert f"--pairs {PAIR}" in command
    again = call(*shlex.split(command)[1:], "--data", "npz:tiny.npz", "--dry-run")
    assert "1 run: 1 done, 0 to train" in again.out


def test_check_teachers_measures_them_together(folder: Path, call: Call) -> None:
    done = call("check-teachers", "resnet14+resnet8", "--data", "npz:tiny.npz", "--device", "cpu")
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if TEACHERS in line)
    assert f"{reached(folder):.2f}" in line
    assert_refused(call("check-teachers", "resnet20+resnet8", "--data", "npz:tiny.npz"), "no resnet8+resnet20 in")


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("resnet14+:resnet8", "'resnet14+' lacks a network beside its +: write resnet14"),
        ("resnet14+resnet15:resnet8", "unknown network 'resnet15'"),
        ("resnet14+heads+resnet20:resnet8", "by their own logits alone: write resnet14+resnet20"),
        ("resnet14+resnet14:resnet8", "names resnet14 twice"),
        ("resnet14:resnet8+resnet20", "'resnet8+resnet20' names several networks, which only the teacher of a pair"),
        ("resnet14+resnet20:resnet8", "there is no teacher resnet20"),
    ],
)
def test_a_bad_pair_is_one_sentence(tiny: Path, call: Call, pair: str, sentence: str) -> None:
    done = call("run", "--pairs", pair, "--methods", "kd", "--seeds", "1", *SMALL, "--teacher", "resnet14=resnet14.pth")
    assert_refused(done, sentence)
    assert not (tiny / "results").exists()


@pytest.mark.slow
def test_killed_or_alone_it_comes_to_the_same_numbers(folder: Path, shell: Shell) -> None:
    """What a killed command goes on to is what an undisturbed one makes; a row alone is that of the cohort."""
    grid = (*RUN, "--methods", "vanilla,kd,dkd", "--epochs", "4", "--results")
    command = shell.start(*grid, "killed")
    try:
        wait_for("epoch 2/4", command)
    finally:
        command.kill()
    assert finish(command).code == -signal.SIGKILL
    done = shell.run(*grid, "killed")
    assert done.code == 0, done.err
    assert f"with teacher {TEACHERS}" in done.err
    assert "epoch 1/4" not in done.err
    assert shell.run(*grid, "undisturbed").code == 0
    assert_same_numbers(folder / "killed", folder / "undisturbed")
    assert shell.run(*RUN, "--methods", "kd", "--epochs", "4", "--results", "alone").code == 0
    ((run, weights),) = students_in(folder / "alone").items()
    together = students_in(folder / "undisturbed")[run]
    assert all(torch.equal(value, together[key]) for key, value in weights.items())
