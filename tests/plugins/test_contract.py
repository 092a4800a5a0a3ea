"""What the docstring of ``Method`` says of its hooks."""

import re

import pytest

from kdtable.methods import METHODS
from kdtable.methods.base import Method

#: A hook, or several, and the built-in method that the docstring names for it.
BULLETS = re.findall(r"^    - (.+?)(?=\n    - |\n\n)", Method.__doc__ or "", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    (hook, method)
    for bullet in BULLETS
    for hook in re.findall(r"`(\w+)`", bullet.split(": ")[0])
    for method in re.findall(r"\(``([\w-]+)``", bullet)
    if hasattr(Method, hook)
]


def test_every_hook_is_named() -> None:
    public = {name for name in vars(Method) if not name.startswith("_")}
    assert {name for name in public if not re.search(rf"`{name}`", Method.__doc__ or "")} == set()
    assert len(EXAMPLES) > 20


@pytest.mark.parametrize(("hook", "method"), EXAMPLES)
def test_the_method_named_for_a_hook_uses_it(hook: str, method: str) -> None:
    assert getattr(METHODS[method], hook) != getattr(Method, hook)
