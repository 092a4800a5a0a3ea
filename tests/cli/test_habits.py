"""What people's habits bring: names as papers print them, ``~`` in options, closed streams, options given twice."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import SMALL, TEACHER, Call, assert_refused, environment, listing, write_images

PLAN = ("run", "--seeds", "1", *SMALL, *TEACHER, "--dry-run")


@pytest.mark.parametrize(
    ("written", "ours"), [("KD", "kd"), ("CRD", "crd"), ("kd+CRD", "crd+kd"), ("GKD+CD", "cd+gkd"), ("At", "at")]
)
def test_methods_are_found_in_any_case_and_order(call: Call, tiny: Path, written: str, ours: str) -> None:
    words = ("--pairs", "ResNet14 : resnet-8", "--set", "negatives=16") if "crd" in ours else ("--pairs", "res14:res8")
    done = call(*PLAN, *words, "--methods", written)
    assert (done.code, done.err) == (0, "")
    assert f" {ours} " in done.out


@pytest.mark.parametrize("written", ["CIFAR100", "CIFAR-100", "cifar_100"])
def test_data_sets_are_found_in_any_case(call: Call, written: str) -> None:
    done = call("run", "--pairs", "resnet14:resnet8", "--methods", "vanilla", "--data", written, "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert " cifar100 " in done.out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--methods", "xyzzy"), ("unknown method 'xyzzy': 'kdtable list methods' shows what there is",)),
        (("--methods", "at+crdd"), ("unknown method 'crdd'; did you mean",)),
        (("--data", "xyzzy"), ("unknown data set 'xyzzy': 'kdtable list datasets' shows",)),
        (("--set", "T=4"), ("unknown setting 'T': here it is called kd_temperature",)),
        (("--set", "alpha=0.9"), ("unknown setting 'alpha': here it is called weight.kd",)),
        (("--set", "weight.kd=-1"), ("--set weight.kd must not be negative, it is -1",)),
        (("--set", "momentum=0.5", "--set", "momentum=0.6"), ("--set momentum is given as 0.5 and as 0.6",)),
        (("--teacher", "resnet14=other.pth"), ("--teacher resnet14 is given as", "leave one out")),
    ],
)
def test_what_resembles_nothing_or_has_no_sense(
    call: Call, tiny: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    (tiny / "other.pth").write_bytes(b"")
    before = listing(tiny)
    assert_refused(call(*PLAN, "--pairs", "resnet14:resnet8", "--methods", "kd", *words), *parts)
    assert listing(tiny) == before


def _process(folder: Path, *words: str, closed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m kdtable "$@" {closed}'
    return subprocess.run(
        ["/bin/sh", "-c", command, "sh", *words],
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_option_given_twice(tiny: Path) -> None:
    done = _process(tiny, "run", "--epochs", "2", "--pairs", "resnet14:resnet8", "--epochs=3")
    assert (done.returncode, done.stderr) == (2, "kdtable: --epochs is given as 2 and as 3: leave one out\n")
    done = _process(tiny, *PLAN, "--pairs", "resnet14:resnet8", "--methods", "vanilla", "--epochs", "2", "--epochs=2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_tilde_is_the_home_folder(tiny: Path) -> None:
    home = tiny / "home"
    home.mkdir()
    train = ("train-teachers", "resnet8", "--epochs", "1", *SMALL)
    done = _process(tiny, *train, "--results=~/results", "--teachers-dir=~/teachers", HOME=str(home))
    assert done.returncode == 0, done.stderr
    variables = {"KDTABLE_RESULTS": "~/results2", "KDTABLE_TEACHERS": "~/teachers2", "HOME": str(home)}
    done = _process(tiny, *train, **variables)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in home.iterdir()} == {"results", "teachers", "results2", "teachers2"}
    assert not (tiny / "~").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_dev_null(tiny: Path, closed: str) -> None:
    done = _process(tiny, "train-teachers", "resnet8", "--epochs", "1", *SMALL, closed=closed)
    assert done.returncode == 0, done.stderr
    database = (tiny / "results" / "kdtable.sqlite").read_bytes()
    assert database.startswith(b"SQLite format 3\0"), "nothing was printed into a file"
    assert _process(tiny, "store", "check").returncode == 0


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_of_another_encoding(tiny: Path, encoding: str) -> None:
    done = _process(tiny, "list", "tables", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "crd-1" in done.stdout


def test_a_plan_that_cannot_be_trained_says_so(call: Call, tiny: Path) -> None:
    write_images(
        tiny / "one.npz", {"num_classes": None, "train_labels": np.zeros(48, int), "test_labels": np.zeros(24, int)}
    )
    plan = ("run", "--pairs", "resnet14:resnet8", "--seeds", "3", *SMALL, "--dry-run")
    done = call(*plan, "--data", "npz:one.npz", "--methods", "crd")
    assert done.code == 1, done.err
    assert "crd on resnet14:resnet8 cannot be trained: " in " ".join(done.out.split())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory")
def test_a_setting_that_asks_for_more_than_the_machines_memory(tiny: Path) -> None:
    negatives = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (16 * 8)  # indices of 16 images fill it
    done = _process(tiny, *PLAN, "--pairs", "resnet14:resnet8", "--methods", "crd", "--set", f"negatives={negatives}")
    assert done.returncode == 1, done.stderr
    assert "its step does not fit into this machine's memory" in " ".join(done.stdout.split())


def test_chance_is_the_share_of_the_most_frequent_class(call: Call, tiny: Path) -> None:
    """What always answers the frequent class is right on 3 of 4 images, and has learnt nothing."""
    labels = {
        f"{part}_labels": (np.arange(count) % 4 == 0).astype(int) for part, count in (("train", 48), ("test", 24))
    }
    noise = np.random.default_rng(0).integers(0, 256, (48, 3, 32, 32), np.uint8)
    write_images(tiny / "rare.npz", {"num_classes": None, "train_images": noise, "test_images": noise[:24], **labels})
    done = call(
        "run", "--pairs", "resnet8:resnet8", "--methods", "vanilla", "--seeds", "1", "--epochs", "1",
        "--data", "npz:rare.npz", "--batch-size", "16", "--device", "cpu", "--lr", "1e-9",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Never left chance level: seed 1." in done.out
