"""What a run costs, and which rows nothing beats in both cost and quality."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

#: Costs that records hold, in words.
COSTS: Final = {
    "cpu-seconds": "CPU seconds of a run alone",
    "seconds": "seconds of a run, beside its cohort",
    "passes": "teacher passes over the training set",
    "parameters": "parameters of the measured network",
    "method-parameters": "parameters that the method adds in training",
}


def costs_of(cost: str, runs: "pd.DataFrame", epochs: "pd.DataFrame") -> "pd.Series[float]":
    """A cost of each run, by id; NaN where it was not recorded.

    Args:
        cost: one of `COSTS`.
        runs: a line per run, as :func:`kdtable.report.frames.runs_frame` makes them.
        epochs: of those runs, as :func:`kdtable.report.frames.epochs_frame` makes them; read for passes alone.
    """
    runs = runs.drop_duplicates("run").set_index("run")
    if cost != "passes":
        return runs[cost.replace("-", "_")].astype(float)
    trained = epochs[epochs["kind"] == "seconds"].groupby("run").size()
    return trained.reindex(runs.index).where(runs["teacher"].notna(), 0).astype(float)


def steady(cost: str, value: float) -> float:
    """A mean cost as it is compared: times to two digits, since the jitter of a machine is no difference in cost."""
    return float(f"{value:.2g}") if cost.endswith("seconds") else value


def front(costs: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    """The rows that no cheaper row reaches, the cheapest first; a higher score is better."""
    best, found = float("-inf"), []
    for row in sorted(costs, key=lambda row: (costs[row], -scores[row])):
        if scores[row] > best:
            best = scores[row]
            found.append(row)
    return found
