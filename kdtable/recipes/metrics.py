"""Metrics as data: how tables show what a task measures. Does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from kdtable.errors import BadRequest, unknown

#: Which epoch a published table shows, measured on the test images after every epoch.
EPOCHS: Final = ("last", "best", "lowest-loss")

#: The rule of runs that chose their epoch by held-out training images and then measured the test set once.
VALIDATED: Final = "validation"

#: Names for ``--epoch``.
RULES: Final = (*EPOCHS, VALIDATED)

#: Prefix of the stored names of what held-out images measure.
VALIDATION: Final = "validation-"

#: Decimals of a difference: 100 - 70.66 in floating point has spurious ones.
_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that tables show: ``offset + scale * stored``.

    Example:
        Metric("top1-error", "top-1 error", "%", higher_is_better=False, stored="top1", scale=-100, offset=100)

    Attributes:
        name: in ``--metric`` and papers: "top1-error".
        words: in titles: "top-1 error".
        unit: "%", or empty.
        higher_is_better: the metric's direction.
        stored: name of the measured metric: "top1".
        scale: factor of the stored value.
        offset: constant that is added.
    """

    name: str
    words: str
    unit: str
    higher_is_better: bool
    stored: str
    scale: float = 1.0
    offset: float = 0.0

    def shown(self, stored: float) -> float:
        """Convert a stored value to the one that tables show."""
        value = self.offset + self.scale * stored
        return round(value, _DIGITS) if self.offset else value

    def goodness(self, stored: float) -> float:
        """A number that grows with how good a stored value is."""
        return stored if self.higher_is_better == (self.scale > 0) else -stored

    def on_validation(self) -> "Metric":
        """The same metric on held-out training images; itself if it is one of these."""
        if self.stored.startswith(VALIDATION):
            return self
        name, words = f"{VALIDATION}{self.name}", f"validation {self.words}"
        return replace(self, name=name, words=words, stored=f"{VALIDATION}{self.stored}")

    def watched(self, measured: Mapping[str, float]) -> float | None:
        """The stored value in an epoch's measures: on held-out images if there are any, else on the test images."""
        return measured.get(f"{VALIDATION}{self.stored}", measured.get(self.stored))

    def converted(self, value: float, given: "Metric") -> float:
        """Convert a shown value of ``given``, a metric of the same stored value, to this metric."""
        return value if given == self else round(self.shown((value - given.offset) / given.scale), _DIGITS)


#: Metrics of classification. The first is the main metric, which determines the best epoch. Those from the agreement on
#: are measured in the last epoch only (`kdtable.tasks.closing`).
CLASSIFICATION: Final = (
    Metric("top1", "top-1 accuracy", "%", higher_is_better=True, stored="top1", scale=100.0),
    Metric("top5", "top-5 accuracy", "%", higher_is_better=True, stored="top5", scale=100.0),
    Metric("top1-error", "top-1 error", "%", higher_is_better=False, stored="top1", scale=-100.0, offset=100.0),
    Metric("top5-error", "top-5 error", "%", higher_is_better=False, stored="top5", scale=-100.0, offset=100.0),
    Metric("agreement", "agreement with the teacher", "%", higher_is_better=True, stored="agreement", scale=100.0),
    Metric("teacher-kl", "KL divergence from the teacher", "nats", higher_is_better=False, stored="teacher-kl"),
    Metric("nll", "negative log-likelihood", "nats", higher_is_better=False, stored="nll"),
    Metric("ece", "expected calibration error", "%", higher_is_better=False, stored="ece", scale=100.0),
    Metric("balanced", "balanced accuracy", "%", higher_is_better=True, stored="balanced", scale=100.0),
)


def _of_coco(name: str) -> Metric:
    return Metric(name, name, "", higher_is_better=True, stored=name, scale=100.0)


#: COCO's twelve numbers, in percent without the sign, as papers print them: average precision over IoU 0.5 to 0.95, at
#: 0.5, at 0.75, and of small, medium and large objects; recall of 1, 10 and 100 detections of an image, and of these
#: sizes. The first is the main metric.
DETECTION: Final = tuple(
    map(
        _of_coco,
        ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    )
)

#: What tables show where nobody names a metric, by the main metric: detectors' tables always print these.
_TOGETHER: Final = {"AP": ("AP", "AP50", "AP75", "APs", "APm", "APl")}

#: Metrics of students that are trained without labels: of a linear classifier on their frozen trunk, and of their
#: nearest neighbours.
SELF_SUPERVISED: Final = (
    Metric("probe", "linear-probe top-1 accuracy", "%", higher_is_better=True, stored="probe-top1", scale=100.0),
    Metric("probe-top5", "linear-probe top-5 accuracy", "%", higher_is_better=True, stored="probe-top5", scale=100.0),
    Metric("knn", "kNN accuracy", "%", higher_is_better=True, stored="knn", scale=100.0),
)

#: Where a run's result holds what ``kdtable probe`` measured of its student, beside the epochs that tables show.
PROBES: Final = "probes"

#: Metrics of linear probes of a student on other data, as ``kdtable probe`` stores them, by kind of data set.
TRANSFER: Final = {
    kind: Metric(
        f"probe-{kind}",
        f"linear-probe top-1 accuracy on {name}",
        "%",
        higher_is_better=True,
        stored=f"probe-{kind}-top1",
        scale=100.0,
    )
    for kind, name in {
        "cifar10": "CIFAR-10",
        "cifar100": "CIFAR-100",
        "stl10": "STL-10",
        "tiny-imagenet": "Tiny-ImageNet",
    }.items()
}
PROBED: Final = frozenset(metric.stored for metric in TRANSFER.values())

#: Metrics that papers' data may name.
METRICS: Final = {metric.name: metric for metric in (*CLASSIFICATION, *DETECTION, *SELF_SUPERVISED, *TRANSFER.values())}
_SHARES: Final = frozenset(metric.stored for metric in (*CLASSIFICATION, SELF_SUPERVISED[-1]) if metric.unit == "%")


def usual(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """Of a task's metrics, the main one and those that its tables show beside it."""
    names = shown_with(metrics[0].name)
    return tuple(metric for metric in metrics if metric.name in names)


def shown_with(main: str) -> tuple[str, ...]:
    """Names of a main metric and of those that tables show beside it."""
    return _TOGETHER.get(main, (main,))


def metric_of(text: str) -> str:
    """A metric's name from its name or its words (``top-1 accuracy``).

    Raises:
        ValueError: unknown metric.
    """
    for name, metric in METRICS.items():
        if text in (name, metric.words):
            return name
    raise ValueError(f"unknown metric '{text}'")


def parse_metrics(text: str, known: Mapping[str, Metric]) -> tuple[Metric, ...]:
    """Parse a comma-separated list of names of ``known`` metrics.

    Raises:
        BadRequest: unknown name, or no name.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise BadRequest(f"--metric names no metric: use one or several of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown("metric", name, known)
    return tuple(known[name] for name in names)


def of_branches(measured: Mapping[str, float], main: Metric) -> Sequence[float]:
    """Stored values of the main metric for a student's extra classifiers, shallow to deep."""
    names = (f"branch{number}-{main.stored}" for number in count(1))
    found = []
    while (value := measured.get(next(names))) is not None:
        found.append(value)
    return found


def is_share(name: str) -> bool:
    """Whether a stored metric is a fraction in [0, 1], of any part of the data or any classifier."""
    return name.rpartition("-")[2] in _SHARES
