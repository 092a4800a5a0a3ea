"""``docs/api.md`` is executed from top to bottom, and prints what it says.

Run as a program it writes the page anew: ``python -m tests.test_api_page``.
"""

import ast
import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "api.md"

#: A block of code, and what it prints, if the page says so.
BLOCKS = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def _executed(code: str, names: dict[str, object]) -> str:
    """What a block prints, its last expression included, as a notebook shows it."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed, pd.option_context("display.width", 110):
        exec(compile(tree, str(PAGE), "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)
            if value is not None:
                print(value)
    return printed.getvalue()


def _stable(text: str) -> list[str]:
    """Words; numbers with a decimal point depend on the machine, and so do the marks of best rows."""
    return re.sub(r"-?\d+\.\d+|\bnan\b|\bNaN\b|\b(best|tied|second)\b", " ", text, flags=re.IGNORECASE).split()


def test_the_page_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDTABLE_RESULTS", raising=False)
    threads = torch.get_num_threads()
    names: dict[str, object] = {}
    blocks = BLOCKS.findall(PAGE.read_text())
    assert len(blocks) > 8
    for code, said in blocks:
        assert _stable(_executed(code, names)) == _stable(said), code
    assert torch.get_num_threads() == threads


def _write() -> None:
    names: dict[str, object] = {}

    def filled(block: re.Match[str]) -> str:
        printed = "".join(f"{line.rstrip()}\n" for line in _executed(block[1], names).splitlines())
        return f"```python\n{block[1]}```\n" + (f"\n```text\n{printed}```\n" if printed else "")

    page = PAGE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        PAGE.write_text(BLOCKS.sub(filled, page))


if __name__ == "__main__":
    _write()
