"""Ranges in which ``kdtable sweep --trials`` searches settings. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Range:
    """Where to search a number: log-uniform, so that halves and doubles are equally likely.

        temperature: Annotated[PositiveFloat, Range(1, 16)] = 4.0

    Attributes:
        low: lowest value, above 0.
        high: highest value.
        relative: whether both are factors of the row's own value, as for weights, whose scale belongs to their term.
        whole: whether values are whole numbers.
    """

    low: float
    high: float
    relative: bool = False
    whole: bool = False

    def at(self, fraction: float, own: float = 1.0) -> str:
        """The value at a fraction in [0, 1) of the range, to three digits, as ``--set`` takes it.

        Args:
            fraction: 0 is the lowest value; 1/2 the geometric mean of both.
            own: the row's own value.
        """
        if self.whole:
            value = self.low * ((self.high + 1) / self.low) ** fraction
            return str(min(int(value), int(self.high)))
        value = self.low * (self.high / self.low) ** fraction * (own if self.relative else 1.0)
        return f"{float(f'{value:.3g}'):g}"


#: Of a softmax: 1 is none; at 16 the targets of most teachers are almost uniform.
TEMPERATURE: Final = Range(1.0, 16.0)
#: Of a loss term, or of a part of one: a tenth to ten times the paper's.
WEIGHT: Final = Range(0.1, 10.0, relative=True)


def declared(annotations: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges that annotated fields declare, by name."""
    found = {name: getattr(annotation, "__metadata__", ()) for name, annotation in annotations.items()}
    return {name: one for name, metadata in found.items() for one in metadata if isinstance(one, Range)}
