"""Metrics as data: what tables show of what a task measures. Free of torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from kdtable.errors import BadRequest, unknown

#: Which epoch may count, by the names that papers' data and ``--epoch`` take.
EPOCHS: Final = ("last", "best", "lowest-loss")

#: Digits to which what is missing from a whole is rounded: 100 - 70.66 has some that nobody printed or measured.
_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that tables show, and how it follows from what is measured.

    Attributes:
        name: as ``--metric`` and papers take it: "top1-error".
        words: as titles name it: "top-1 error".
        unit: "%", or empty.
        higher_is_better: its direction.
        stored: the measured metric that it follows from: "top1".
        scale: what is shown is ``offset + scale * stored``.
        offset: likewise.
    """

    name: str
    words: str
    unit: str
    higher_is_better: bool
    stored: str
    scale: float = 1.0
    offset: float = 0.0

    def shown(self, stored: float) -> float:
        """What tables show of a measured number."""
        value = self.offset + self.scale * stored
        return round(value, _DIGITS) if self.offset else value

    def converted(self, value: float, given: "Metric") -> float:
        """A shown number of another metric that follows from the same measurement, as this one."""
        return value if given == self else round(self.shown((value - given.offset) / given.scale), _DIGITS)


#: Of classifiers. The first is the main metric, by which the best epoch is chosen.
CLASSIFICATION: Final = (
    Metric("top1", "top-1 accuracy", "%", higher_is_better=True, stored="top1", scale=100.0),
    Metric("top5", "top-5 accuracy", "%", higher_is_better=True, stored="top5", scale=100.0),
    Metric("top1-error", "top-1 error", "%", higher_is_better=False, stored="top1", scale=-100.0, offset=100.0),
    Metric("top5-error", "top-5 error", "%", higher_is_better=False, stored="top5", scale=-100.0, offset=100.0),
)

#: Those that papers' data may name.
METRICS: Final = {metric.name: metric for metric in CLASSIFICATION}
_SHARES: Final = frozenset(metric.stored for metric in CLASSIFICATION)


def metric_of(text: str) -> str:
    """A metric's name by that name or by its words (``top-1 accuracy``).

    Raises:
        ValueError: there is no such metric.
    """
    for name, metric in METRICS.items():
        if text in (name, metric.words):
            return name
    raise ValueError(f"unknown metric '{text}'")


def parse_metrics(text: str, known: Mapping[str, Metric]) -> tuple[Metric, ...]:
    """One of the ``known`` metrics by its name, or several with commas between them.

    Raises:
        BadRequest: an unknown name, or none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise BadRequest(f"--metric names no metric: use one or several of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown("metric", name, known)
    return tuple(known[name] for name in names)


def of_branches(measured: Mapping[str, float], main: Metric) -> Sequence[float]:
    """What a student's extra classifiers reached of the main metric, as measured, shallow to deep."""
    names = (f"branch{number}-{main.stored}" for number in count(1))
    found = []
    while (value := measured.get(next(names))) is not None:
        found.append(value)
    return found


def is_share(name: str) -> bool:
    """Whether a measured metric of that name is a share in [0, 1]: an accuracy, of whatever images or classifier."""
    return name.rpartition("-")[2] in _SHARES
