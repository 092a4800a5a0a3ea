"""Every command and every Python block of the tutorial and the how-to pages succeeds.

``docs/api.md`` has a test of its own, which compares what is printed too.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.docs.blocks import DOCS, RUN, blocks, execute, surroundings

TUTORIAL = DOCS / "tutorial.md"
STUDENT = DOCS / "using-a-student.md"
PAGES = [*sorted((DOCS / "how-to").glob("*.md")), STUDENT]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A command called inside this process fixes the number of threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def after_tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tutorial leaves."""
    folder = tmp_path_factory.mktemp("tutorial")
    with surroundings(folder):
        execute(TUTORIAL)
    return folder


def test_the_tutorial_leaves_a_teacher_a_store_and_a_page(after_tutorial: Path) -> None:
    assert (after_tutorial / "teachers" / "digits" / "resnet14.safetensors").is_file()
    assert (after_tutorial / "results" / "kdtable.sqlite").is_file()
    assert (after_tutorial / "report.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_how_to_pages_go_on_from_there(page: Path, after_tutorial: Path, tmp_path: Path) -> None:
    if extra := {"other-networks": "timm", "hugging-face": "datasets"}.get(page.stem):
        pytest.importorskip(extra, reason=f"{extra} is not installed")
    shutil.copytree(after_tutorial, tmp_path, dirs_exist_ok=True)
    with surroundings(tmp_path):
        names = execute(page)
    if page == STUDENT:
        assert tuple(names["logits"].shape) == (5, 10)


@pytest.mark.parametrize("page", [TUTORIAL, *PAGES], ids=lambda page: page.stem)
def test_all_code_is_in_blocks_that_a_test_can_see(page: Path) -> None:
    found = blocks(page)
    text = page.read_text(encoding="utf-8")
    assert len(found) == len(re.findall("^```[^`\n]*$", text, re.MULTILINE)) / 2
    assert text.count("<!-- not run: ") == sum(block.reason is not None for block in found)
    assert {block.language for block in found} <= {*RUN, "text", "toml"}
    assert any(block.runs for block in found)
    assert not re.findall(r"^(?:    |\$ ).*kdtable .*", "".join(re.split("(?ms)^```.*?^```$", text)), re.MULTILINE)
