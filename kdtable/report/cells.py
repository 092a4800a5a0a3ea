"""Table cells: means over seeds, and paired differences between rows."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kdtable.recipes.metrics import Metric


@dataclass(slots=True)
class CellValues:
    """The seeds behind one table cell.

    Attributes:
        values: seed to one metric of its finished run, in the unit shown; filled by :meth:`of`.
        asked: number of requested runs.
        failed: number of them that failed.
        not_applicable: why the row's method cannot be run on the pair, if so.
        notes: footnotes, as sentences.
        measured: seed to all metrics of its finished run, as stored.
    """

    values: dict[int, float] = field(default_factory=dict)
    asked: int = 0
    failed: int = 0
    not_applicable: str | None = None
    notes: list[str] = field(default_factory=list)
    measured: dict[int, Mapping[str, float]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of finished seeds."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over seeds; ``None`` without any."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (n - 1); ``None`` below two seeds."""
        mean = self.mean
        if mean is None or self.n == 1:
            return None
        # Not statistics.stdev, whose exact fractions take most of a large report's time.
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values.values()) / (self.n - 1))

    def of(self, metric: Metric) -> "CellValues":
        """A copy with ``values`` of one metric."""
        name = metric.stored
        values = {seed: metric.shown(found[name]) for seed, found in self.measured.items() if name in found}
        return replace(self, values=values)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean over common seeds of (row - baseline), in points, and its standard error (``None`` below two seeds)."""

    mean: float
    standard_error: float | None
    n: int


def paired_difference(cell: CellValues, baseline: CellValues) -> PairedDifference | None:
    """Compare two cells seed by seed, which removes the variance between seeds; ``None`` without a common seed."""
    seeds = sorted(cell.values.keys() & baseline.values.keys())
    if not seeds:
        return None
    gaps = [cell.values[seed] - baseline.values[seed] for seed in seeds]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
    return PairedDifference(statistics.fmean(gaps), error, len(gaps))
