"""Axes of the page's pictures: from data to whole units of an SVG's view box."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

#: Steps between ticks, times a power of ten.
_STEPS: Final = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps data from [low, high] to whole units from ``start`` to ``end``; logarithmic if ``log``.

    Example:
        ``Axis(0, 10, 0, 200).at(5) == 100``
    """

    low: float
    high: float
    start: int
    end: int
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], start: int, end: int, *, log: bool = False) -> "Axis":
        """An axis with some room around the finite ``values``; a logarithmic one needs them to be positive."""
        found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(found), max(found)
        if log:
            room = (high / low) ** 0.08 if high > low else 1.5
            return cls(low / room, high * room, start, end, log=True)
        room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> int:
        """The place of a value, in whole units, so that paths stay short."""
        low, high, value = (math.log(x) for x in (self.low, self.high, value)) if self.log else self._plain(value)
        return round(self.start + (self.end - self.start) * (value - low) / (high - low))

    def _plain(self, value: float) -> tuple[float, float, float]:
        return self.low, self.high, value

    def ticks(self, most: int = 6) -> list[tuple[int, str]]:
        """Places and labels of at most about ``most`` round values."""
        values = self._log_values(most) if self.log else self._values(most)
        digits = 0 if self.log else _digits(values)
        return [(self.at(value), f"{value:.{digits}f}" if not self.log else f"{value:g}") for value in values]

    def _values(self, most: int) -> list[float]:
        step = _step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]

    def _log_values(self, most: int) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [factor * 10.0**power for power in powers for factor in _STEPS[:3]]
        inside = [value for value in values if self.low <= value <= self.high]
        return inside[:: math.ceil(len(inside) / most)] if len(inside) > 1 else self._values(3)


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))


def _digits(values: Sequence[float]) -> int:
    """Decimals that tell ticks apart."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    return max(0, -math.floor(math.log10(step) + 1e-9))


def path(points: Sequence[tuple[int, int]]) -> str:
    """An SVG path through points, with relative steps, which are short."""
    if not points:
        return ""
    (x, y), *others = points
    text, steps = f"M{x} {y}", []
    for other_x, other_y in others:
        steps.append(f"{other_x - x} {other_y - y}")
        x, y = other_x, other_y
    return text + ("l" + " ".join(steps) if steps else "")


def dots(points: Iterable[tuple[int, int]]) -> str:
    """An SVG path of points; drawn with round line caps, each is a dot."""
    return "".join(f"M{x} {y}h0" for x, y in points)


def apart(places: Sequence[int], gap: int, start: int, end: int) -> list[int]:
    """Move labels at ``places`` apart, keeping their order, until they are ``gap`` apart between start and end."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    floor = start
    for index in order:
        moved[index] = max(places[index], floor)
        floor = moved[index] + gap
    ceiling = end
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def thinned(many: int, most: int) -> Sequence[int]:
    """Indices of at most ``most`` of ``many`` points, evenly, the first and the last included."""
    if many <= most:
        return range(many)
    return sorted({round(number * (many - 1) / (most - 1)) for number in range(most)})
