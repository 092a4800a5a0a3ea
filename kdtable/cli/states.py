"""States of runs, in words."""

from collections.abc import Mapping
from typing import Final

WORDS: Final = {
    "done": "done",
    "running": "running",
    "interrupted": "interrupted",
    "failed": "failed",
    "planned": "missing",
    "n/a": "not applicable",
}


def count_words(counts: Mapping[str, int]) -> str:
    """How many runs there are in each state; "0 done" if there is none."""
    shown = {WORDS[state]: counts.get(state, 0) for state in WORDS}
    return ", ".join(f"{n:,} {word}" for word, n in shown.items() if n or word == "done")
