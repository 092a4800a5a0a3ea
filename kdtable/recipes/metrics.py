"""What tables show, as data: name, unit, direction, and what of an epoch's record it follows from. Free of torch."""

from dataclasses import dataclass
from typing import Final

from kdtable.errors import BadRequest, unknown


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that tables can show.

    Attributes:
        name: as ``--metric`` and papers' data take it.
        words: what tables call it.
        unit: of what is shown.
        higher_is_better: its direction.
        stored: the metric of an epoch's record that it follows from.
        scale: shown = ``offset`` + ``scale`` * stored.
        offset: see ``scale``.
    """

    name: str
    words: str
    unit: str
    higher_is_better: bool
    stored: str
    scale: float = 1.0
    offset: float = 0.0


#: The first is the main metric, by which the best epoch is chosen.
CLASSIFICATION: Final = (
    Metric("top1", "top-1 accuracy", "%", True, "top1", 100.0),
    Metric("top5", "top-5 accuracy", "%", True, "top5", 100.0),
    Metric("top1-error", "top-1 error", "%", False, "top1", -100.0, 100.0),
    Metric("top5-error", "top-5 error", "%", False, "top5", -100.0, 100.0),
)

#: By the names that papers' data and ``--metric`` take.
METRICS: Final = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "top1-error": "top-1 error",
    "top5-error": "top-5 error",
}
_ERROR: Final = "-error"

#: Which epoch may count, by the names that papers' data and ``--epoch`` take: how columns of the store begin.
EPOCHS: Final = {"last": "last", "best": "best", "lowest-loss": "lowest"}


def metric_of(text: str) -> str:
    """A metric by its name or by its words (``top-1 accuracy``).

    Raises:
        ValueError: there is no such metric.
    """
    for name, words in METRICS.items():
        if text in (name, words):
            return name
    raise ValueError(f"unknown metric '{text}'")


def is_error(metric: str) -> bool:
    """Whether a metric is the better the lower it is: what is missing from an accuracy to 100 %."""
    return metric.endswith(_ERROR)


def accuracy_of(metric: str) -> str:
    """The accuracy that a metric is computed from: ``top1`` or ``top5``."""
    return metric.removesuffix(_ERROR)


def converted(percent: float, given: str, wanted: str) -> float:
    """A number of one metric as another of the same accuracy."""
    # Rounded, because 100 - 70.66 has digits that nobody printed or measured.
    return percent if given == wanted else round(100 - percent, 10)


def parse_metrics(text: str) -> tuple[str, ...]:
    """One metric, or several with commas between them.

    Raises:
        BadRequest: an unknown name, or none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise BadRequest(f"--metric names no metric: use one or several of {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return names
