"""Numbers and durations as the page prints them."""

import math
from collections.abc import Sequence

#: A number that is not there.
NOTHING = "—"
MINUS = "\N{MINUS SIGN}"


def signed(points: float) -> str:
    """A difference in points, with a true minus sign."""
    value = round(points, 2) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{value:+.2f}".replace("-", MINUS)


def number(value: float, digits: int = 2) -> str:
    """A number, with a true minus sign; a dash for NaN."""
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """A duration in the largest fitting unit."""
    if math.isnan(seconds):
        return NOTHING
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def counted(many: int, word: str) -> str:
    """A number of things."""
    return f"{many:,} {word}" + ("" if many == 1 else "s")


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def letters(number: int) -> str:
    """The mark of a footnote, as an HTML list of letters counts: a, b, .., z, aa, ..; numbers are taken for seeds."""
    text = ""
    while number:
        number, place = divmod(number - 1, 26)
        text = chr(ord("a") + place) + text
    return text
