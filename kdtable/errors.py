"""Errors that a user can act on."""

from collections.abc import Iterable
from difflib import get_close_matches


class BadRequest(Exception):
    """A request that cannot be carried out: one sentence that says what is wrong and what to do (exit code 2)."""


class Trouble(BadRequest):
    """A good request that was begun and cannot be ended: one sentence that says why and what to do (exit code 1)."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadRequest:
    """The error for a name that nothing has, with the nearest names that exist."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.5) or names[:8]
    return BadRequest(f"unknown {kind} '{name}'; did you mean {', '.join(near)}?")
