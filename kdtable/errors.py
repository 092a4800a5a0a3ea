"""Errors that users can act on."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class BadRequest(Exception):
    """A request that cannot be carried out (exit code 2).

    The text is one sentence: what is wrong, and what to do. ``raise BadRequest("--seeds is 0: use 1 or more")``
    """


class Trouble(BadRequest):
    """A valid request that failed on the way (exit code 1). The text is one sentence: why, and what to do."""


def several(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` names, and the number of the others, as text."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def unknown(kind: str, name: str, known: Iterable[str]) -> BadRequest:
    """The error for an unknown name; it suggests the nearest known names."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.5) or names[:8]
    return BadRequest(f"unknown {kind} '{name}'; did you mean {', '.join(near)}?")
