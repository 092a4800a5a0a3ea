"""What the shell completes, by its real protocol and in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import environment


def completed(*words: str) -> list[str]:
    """What the command answers when the last word is being typed, and those before are."""
    asked = {"_KDTABLE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-X", "importtime", "-m", "kdtable"]
    done = subprocess.run(command, env=environment() | asked, capture_output=True, text=True, check=False)
    assert "torch.nn" not in done.stderr, "completing must be quick"
    return done.stdout.split()


def test_the_last_of_a_list() -> None:
    assert completed("kdtable", "run", "--methods", "kd,cr") == ["kd,crd"]
    assert completed("kdtable", "run", "--log", "tensorboard,ml") == ["tensorboard,mlflow"]


def test_a_further_method_behind_a_plus() -> None:
    assert completed("kdtable", "run", "--methods", "kd,at+cr") == ["kd,at+crd"]
    assert completed("kdtable", "run", "--methods", "cd+gk") == ["cd+gkd", "cd+gkd+edt", "cd+gkl"]


def test_tables_and_networks_before_the_colon() -> None:
    found = completed("kdtable", "run", "--pairs", "crd-1,resnet5")
    assert "crd-1,resnet56:" in found
    assert "crd-1,resnet56_a:" in found


def test_several_teachers() -> None:
    assert completed("kdtable", "run", "--pairs", "resnet56+resnet11") == [
        "resnet56+resnet110:",
        "resnet56+resnet110_a:",
    ]
    assert completed("kdtable", "run", "--pairs", "crd-1,resnet56+to") == [
        "crd-1,resnet56+tofd",
        "crd-1,resnet56+torchvision:",
    ]


def test_a_student_behind_the_colon_where_bash_breaks_words() -> None:
    found = completed("kdtable", "run", "--pairs", "resnet56", ":", "resnet2")
    assert "resnet20" in found
    assert all(name.startswith("resnet2") for name in found)
    assert "resnet20,wrn_40_1:" in completed("kdtable", "run", "--pairs", "crd-1,resnet56", ":", "resnet20,wrn_40_")
    assert "resnet20" in completed("kdtable", "run", "--pairs", "resnet56", ":")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("report", "--table", "crd"), {"crd-1", "crd-2", "crd-transfer"}),
        (("run", "--paper", "mg"), {"mgd", "mgd-coco", "mgd-unsup"}),
        (("run", "--data", "cifar"), {"cifar10", "cifar100"}),
        (("stat",), {"status"}),
    ],
)
def test_names(words: tuple[str, ...], expected: set[str]) -> None:
    assert set(completed("kdtable", *words)) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_a_real_bash(tmp_path: Path) -> None:
    """Bash sources the script, breaks the words itself and shows the answer that is left."""
    kdtable = tmp_path / "kdtable"
    kdtable.write_text(f'#!/bin/sh\nexec {sys.executable} -m kdtable "$@"\n')
    kdtable.chmod(0o755)
    script = f"""
    eval "$({kdtable} --show-completion bash 2>/dev/null || _KDTABLE_COMPLETE=source_bash {kdtable})"
    COMP_WORDS=(kdtable run --pairs resnet56 : resnet11) COMP_CWORD=5
    _kdtable_completion kdtable
    echo "${{COMPREPLY[@]}}"
    """
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment() | path, capture_output=True, text=True, check=True)
    assert "resnet110" in done.stdout.split()
