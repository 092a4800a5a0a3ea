"""Blocks of the documentation's pages, and how they are executed: in order, in one folder, on a part of the digits.

A block is fenced. Of ``bash``, each line is a command; a line that ends in a backslash goes on. ``python`` is executed,
and all blocks of a page share their names. A block with a title is a file's content. ``text`` is what is printed, and
is not compared. ``<!-- not run: reason -->`` in the line before a block leaves it out.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kdtable import plugins
from kdtable.cli import main
from kdtable.data.contents import Arrays
from kdtable.data.formats import digits
from kdtable.data.spec import BUILT_IN
from tests.cli.command import FOREIGN, PROXIES, SECONDS

DOCS = Path(__file__).parents[2] / "docs"

#: Languages that are executed, or written to a file where a block has a title.
RUN = ("bash", "python")

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r'^```(?P<language>[\w-]*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)

#: Part of the digits: a step for each epoch.
TRAIN, TEST = 64, 32

#: Of the epochs that a page names, one in so many is trained.
SHORTER = 8


#: Of the images that a page holds out, one in so many is: as many as of all images.
FEWER = 20


@dataclass(frozen=True)
class Block:
    """A block of code; ``reason`` says why it is not run, and ``title`` is the name of the file that it is."""

    language: str
    text: str
    title: str | None = None
    reason: str | None = None

    @property
    def runs(self) -> bool:
        return self.reason is None and (self.language in RUN or self.title is not None)

    @property
    def commands(self) -> list[str]:
        text = re.sub(r"(?<=--epochs )\d+", _shortened, self.text)
        text = re.sub(r"(?<=--validation )\d+", lambda count: str(int(count[0]) // FEWER), text)
        lines = text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def _shortened(epochs: re.Match[str]) -> str:
    return str(max(1, int(epochs[0]) // SHORTER))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, top to bottom."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(one["language"], one["text"], one["title"], one["reason"]) for one in found]


def small_digits(patch: pytest.MonkeyPatch) -> None:
    """Replace the digits by a few of them, so that commands can be executed as they are printed."""
    read, counts = digits.read, {"train": TRAIN, "test": TEST}

    def some(size: int = 32) -> Arrays:
        return {name: array[: counts[name.partition("_")[0]]] for name, array in read(size).items()}

    patch.setattr(digits, "read", some)
    part = some()
    for name, train in (("digits", part), ("digits-few", digits.few(part))):
        spec = replace(BUILT_IN[name], train_count=len(train["train_labels"]), test_count=TEST)
        patch.setitem(BUILT_IN.targets, name, spec)


@contextlib.contextmanager
def surroundings(folder: Path) -> Iterator[None]:
    """In a folder, without a network, and without the user's own settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        for name, value in PROXIES.items():
            patch.setenv(name, value)
        small_digits(patch)
        yield
        plugins.unload()


def execute(page: Path) -> dict[str, Any]:
    """Execute the blocks of a page in the current folder; the names that its Python blocks leave."""
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        if not block.runs:
            continue
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, str(page), "exec"), names)
        else:
            for command in block.commands:
                _call(command, page)
    return names


def _call(command: str, page: Path) -> None:
    first, *words = shlex.split(command)
    if first == "pip":
        _install(Path(words[-1]))
        return
    here = sorted(Path().glob("*.dist-info"))
    if first == "kdtable" and not here:
        code, printed = _in_process(words)
    else:
        code, printed = _in_a_shell(command)
    assert code == 0, f"{page.name}: {command}\n{printed}"


def _in_process(words: list[str]) -> tuple[int, str]:
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", ["kdtable", *words])
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    assert isinstance(code, int)
    return code, f"{out.getvalue()}\n{err.getvalue()}"


def _in_a_shell(command: str) -> tuple[int, str]:
    """As a process, whose ``kdtable`` is this one on a part of the digits; it sees the packages in this folder."""
    ours = Path(__file__).parents[2]
    python = shlex.quote(sys.executable)
    own = {"kdtable": f"{python} -m tests.docs.blocks", "pytest": f"{python} -m pytest", "python": python}
    functions = "\n".join(f'{name}() {{ {words} "$@"; }}' for name, words in own.items())
    done = subprocess.run(
        ["bash", "-ec", f"{functions}\n{command}"],
        env=os.environ | {"PYTHONPATH": f"{Path.cwd()}{os.pathsep}{ours}"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _install(folder: Path) -> None:
    """Stands in for ``pip install --editable``, which needs a network: writes the package's entry points beside it."""
    project: Mapping[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    about = Path(f"{project['name'].replace('-', '_')}-{project['version']}.dist-info")
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    )
    (about / "entry_points.txt").write_text("\n".join(groups) + "\n")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as lasting:
        small_digits(lasting)
        main()
