"""Errors that users can act on."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final


class BadRequest(Exception):
    """A request that cannot be carried out (exit code 2).

    The text is one sentence: what is wrong, and what to do. ``raise BadRequest("--seeds is 0: use 1 or more")``
    """


class Trouble(BadRequest):
    """A valid request that failed on the way (exit code 1). The text is one sentence: why, and what to do."""


def several(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` names, and the number of the others, as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 run``, ``2,000 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


#: Names that are all printed if none resembles the unknown one.
_FEW: Final = 12


def unknown(kind: str, name: str, known: Iterable[str], listed: str | None = None) -> BadRequest:
    """The error for an unknown name. It suggests the known names that resemble it in any case.

    Args:
        kind: what is named, such as "method".
        name: as the user wrote it.
        known: accepted names.
        listed: what ``kdtable list`` calls these names; named if none resembles the unknown one.
    """
    names = {each.lower(): each for each in sorted(set(known), reverse=True)}
    near = [names[each] for each in get_close_matches(name.lower(), names, n=3, cutoff=0.6)]
    if near:
        return BadRequest(f"unknown {kind} '{name}'; did you mean {', '.join(near)}?")
    if listed is not None:
        return BadRequest(f"unknown {kind} '{name}': 'kdtable list {listed}' shows what there is")
    few = sorted(names.values())[:_FEW]
    return BadRequest(f"unknown {kind} '{name}': use one of {', '.join(few)}{', ...' if len(names) > _FEW else ''}")
