"""The list of slow tests."""

import ast
from pathlib import Path

import pytest

from tests.slow import KEPT, choose, listed

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted({*listed(), *KEPT}))
def test_a_listed_test_is_there(name: str) -> None:
    file, *classes, function = name.split("::")
    body = ast.parse((ROOT / file).read_text()).body
    for each in classes:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == each)
    assert function in [node.name for node in body if isinstance(node, ast.FunctionDef)]


def test_what_takes_long_is_slow_but_for_its_first_parameters() -> None:
    times = {
        "t.py::one": [1.1],
        "t.py::long": [1.2],
        "t.py::many": [0.5] * 9,
        "t.py::each": [2.5, 2.5],
        "t.py::few": [1.1] * 2,
    }
    lines = [f"{each}\t{name}" + f"[{n}]" * (len(of) > 1) for name, of in times.items() for n, each in enumerate(of)]
    assert choose(lines) == {"t.py::long": 0, "t.py::many": 3, "t.py::each": 0}
    assert choose([f"99\t{next(iter(KEPT))}", "99\ttests/methods/test_golden.py::test_it"]) == {}
