"""Shell completion: names of pairs, methods, tables, papers and data sets. Imports no torch."""

import io
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import redirect_stdout, suppress
from typing import Final

#: Variables in which bash passes the typed words, one a line, and the index of the current one.
_WORDS: Final = "COMP_WORDS"
_CURRENT: Final = "COMP_CWORD"


def completing_across_colons(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether bash requests a completion and has split a word at its colons, as in ``resnet56:resnet20``."""
    return "_KDTABLE_COMPLETE" in environment and ":" in environment.get(_WORDS, "").split("\n")


def complete_across_colons(complete: Callable[[], object], environment: MutableMapping[str, str] = os.environ) -> None:
    """Call ``complete`` with the split words joined, and print the part of each answer after the last typed colon.

    Bash splits words at colons and replaces only the part after the last one.
    """
    words = environment[_WORDS].split("\n")
    current = int(environment[_CURRENT])
    joined: list[str] = []
    for word in [*words, ""][: current + 1]:
        if joined and (word == ":" or joined[-1].endswith(":")):
            joined[-1] += word
        else:
            joined.append(word)
    environment[_WORDS], environment[_CURRENT] = "\n".join(joined), str(len(joined) - 1)
    answers = io.StringIO()
    with redirect_stdout(answers), suppress(SystemExit):
        complete()
    typed = len(joined[-1].rpartition(":")[0]) + 1 if ":" in joined[-1] else 0
    print("\n".join(answer[typed:] for answer in answers.getvalue().splitlines()))


def last_of_list(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Make a completer of the last element of a comma-separated list."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return _typed(f"{before}{comma}", last, names())

    return complete


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Make a completer of a name."""

    def complete(incomplete: str) -> list[str]:
        return _typed("", incomplete, names())

    return complete


def pairs(incomplete: str) -> list[str]:
    """Complete the last element of a list of tables and TEACHER:STUDENT pairs."""
    from kdtable import models, papers
    from kdtable.models.foreign import LIBRARIES, split_names

    before, comma, last = incomplete.rpartition(",")
    names, libraries = split_names(last), [f"{library}:" for library in LIBRARIES]
    networks = _networks_of(names[-1]) or [*models.NETWORKS, *libraries]
    if len(names) > 1:
        return _typed(f"{before}{comma}{names[0]}:", names[-1], networks)
    tables = [name for paper in map(papers.load, papers.names()) for name in paper.tables]
    ended = [name if name in libraries else f"{name}:" for name in networks]
    if "+" in last:  # several teachers
        others, _, last = last.rpartition("+")
        return _typed(f"{before}{comma}{others}+", last, [*models.KINDS, *ended])
    return _typed(f"{before}{comma}", last, ended if ":" in last else ["all", *tables, *ended])


def _networks_of(typed: str) -> list[str]:
    """The networks of the library that a typed name begins with."""
    from kdtable.models.foreign import registered

    library, colon, _ = typed.rpartition("+")[2].partition(":")
    return [f"{library}:{name}" for name in registered(library)] if colon else []


def methods(incomplete: str) -> list[str]:
    """Complete the last element of a list of methods: a name, or behind a ``+`` a further one of a combination."""
    from kdtable.methods import METHODS, ON_TASKS

    known = dict.fromkeys([*METHODS, *(name for own in ON_TASKS.values() for name in own)])
    before, comma, last = incomplete.rpartition(",")
    first, plus, typed = last.rpartition("+")
    whole = _typed(f"{before}{comma}", last, known)
    further = [name for name in known if name not in first.split("+") and name != "vanilla"]
    return list(dict.fromkeys([*whole, *(_typed(f"{before}{comma}{first}+", typed, further) if plus else [])]))


def loggers() -> Iterable[str]:
    """Names of all loggers."""
    from kdtable.execution.loggers import LOGGERS

    return LOGGERS


def papers() -> Iterable[str]:
    """Names of all papers."""
    from kdtable.papers import names

    return names()


def tables() -> Iterable[str]:
    """Names of all published tables."""
    from kdtable.papers import load, names

    return [table for paper in map(load, names()) for table in paper.tables]


def data_sets() -> Iterable[str]:
    """Built-in data sets, and prefixes of the user's own (``npz:``)."""
    from kdtable.data.names import READ
    from kdtable.data.spec import BUILT_IN, DETECTION, STREAMED

    return [*BUILT_IN, *(f"{kind}:" for kind in (*READ, *STREAMED, *DETECTION) if kind not in BUILT_IN)]


def _typed(before: str, incomplete: str, names: Iterable[str]) -> list[str]:
    """Names that begin with ``incomplete``, each with the prefix ``before``."""
    return [f"{before}{name}" for name in names if name.startswith(incomplete)]
