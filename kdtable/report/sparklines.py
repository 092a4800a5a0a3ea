"""Curves as a line of bars."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Final

#: Bars from the lowest to the highest.
BARS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Values as bars between their lowest and highest; more than ``width`` of them are averaged in equal stretches.

    Example:
        sparkline([1, 2, 3, 2])  # "▁▅█▅"
    """
    count = min(len(values), width)
    cuts = [len(values) * i // count for i in range(count + 1)] if count else []
    means = [fmean(values[start:end]) for start, end in pairwise(cuts)]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)
    return "".join(BARS[int((mean - low) / span * (len(BARS) - 1) + 0.5) if span else 0] for mean in means)
