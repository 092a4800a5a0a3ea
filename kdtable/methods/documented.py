"""What docstrings say of methods and hyper-parameters."""

import inspect
import re
from collections.abc import Iterator

from kdtable.methods.objective import CombinedParams, Params


def meanings(kind: type[Params]) -> dict[str, str]:
    """What each hyper-parameter is, from the docstrings of its dataclass, by the names of ``--set``."""
    found = {name: text for each in reversed(kind.__mro__) for name, text in _attributes(each)}
    if not issubclass(kind, CombinedParams):
        return found
    own = {f"{of}.{name}": text for of, each in kind.kinds.items() for name, text in meanings(each).items()}
    return {**meanings(Params), **own}


def first_line(kind: type) -> str:
    """The first line of a class's own docstring."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]


def _attributes(kind: type) -> Iterator[tuple[str, str]]:
    """Names and texts of the section "Attributes" of a class's docstring."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
        yield name, " ".join(text.replace("``", "'").split())
