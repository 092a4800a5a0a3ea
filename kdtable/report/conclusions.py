"""What the statistics of a table say, in sentences, and why some of them are refused."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdtable.errors import counted
from kdtable.recipes.metrics import Metric
from kdtable.report.result_table import BASELINES, ResultTable
from kdtable.report.statistics import FEWEST, Gain, Paired, Ranks, TooFew, gain, over_pairs, paired, ranks


def sentences(table: ResultTable, metric: Metric | None = None) -> list[str]:
    """For each method how it compares with ``table.versus``, then ranks, and what was refused.

    Only rows of the recipe of ``table.versus`` are compared.

    Args:
        table: a result table.
        metric: one of its metrics, by default the first.

    Example:
        sentences(table)[0]
        # "crd against kd: better on 5 of 7 pairs, worse on 0 (95 % t-intervals); mean difference +0.52 ..."
    """
    metric = metric or table.metrics[0]
    if table.versus is None:
        return ["No method is compared, since the table has no row to compare with."]
    evidence = _Evidence.of(table, table.versus, metric)
    refused: dict[str, None] = {}
    tests = _tests(evidence, refused)
    found = [_of_method(row, evidence, tests, refused) for row in evidence.methods if row != evidence.versus]
    try:
        found.append(_of_ranks(ranks(evidence.means, metric.higher_is_better)))
    except TooFew as few:
        refused[str(few)] = None
    return [*found, *(f"{text[0].upper()}{text[1:]}." for text in refused)]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Numbers of the rows that may be compared: ``scores`` by column (seeds by methods), and their ``means``."""

    versus: str
    metric: Metric
    methods: tuple[str, ...]
    scores: dict[Any, pd.DataFrame]
    means: pd.DataFrame

    @classmethod
    def of(cls, table: ResultTable, versus: str, metric: Metric) -> "_Evidence":
        methods = tuple(row for row in table.rows if row not in BASELINES or row == versus)
        cells = table.cells[table.cells["metric"] == metric.name]
        groups = cells.pivot(index="column", columns="row", values="group")
        compared = groups.eq(groups[versus], axis=0)
        scores = {
            # Reindexed twice: to the rows of one recipe, and to all methods, with NaN for the others.
            column: block.reindex(columns=[row for row in methods if compared[row][column]]).reindex(columns=methods)
            for column, block in _scores(table, metric).items()
        }
        means = cells.pivot(index="column", columns="row", values="mean").where(compared)[list(methods)]
        return cls(versus, metric, methods, scores, means)

    def paired(self, row: str) -> dict[Any, Paired]:
        """Paired differences to ``versus``, by column with a common seed."""
        found = {column: paired(block[row], block[self.versus]) for column, block in self.scores.items()}
        return {column: difference for column, difference in found.items() if difference.n}

    def gain(self, row: str) -> Gain:
        """Raises TooFew."""
        sign = 1 if self.metric.higher_is_better else -1
        gaps = {column: sign * (block[row] - block[self.versus]) for column, block in self.scores.items()}
        long = pd.concat(gaps, names=["pair", "seed"]) if gaps else pd.Series(dtype=float)
        return gain(long.rename("value").reset_index().reindex(columns=["pair", "seed", "value"]))


def _scores(table: ResultTable, metric: Metric) -> dict[Any, pd.DataFrame]:
    """Seeds by rows, for each column of a metric."""
    values = table.values[table.values["metric"] == metric.name]
    return {
        column: block.pivot(index="seed", columns="row", values="value").drop(columns="teacher", errors="ignore")
        for column, block in values.groupby("column")
    }


def _tests(evidence: _Evidence, refused: dict[str, None]) -> dict[str, Any]:
    """The tests over pairs, a line of :func:`over_pairs` by row; empty if refused."""
    try:
        lines: Iterable[Any] = over_pairs(evidence.means, evidence.versus).itertuples()
        return {line.row: line for line in lines if line.n >= FEWEST}
    except TooFew as few:
        refused[str(few)] = None
        return {}


def _of_method(row: str, evidence: _Evidence, tests: dict[str, Any], refused: dict[str, None]) -> str:
    differences = list(evidence.paired(row).values())
    if not differences:
        return f"{row} against {evidence.versus}: no common seed of one recipe."
    parts = [_on_pairs(differences, evidence.metric, refused), *_sign_flips(differences, refused)]
    if test := tests.get(row):
        p = f"Wilcoxon {_p(test.p)} ({_p(test.p_holm)} with Holm)"
        parts.append(f"mean difference {test.difference:+.2f} over {test.n} pairs, {p}")
    try:
        overall = evidence.gain(row)
        interval = f"{overall.mean:+.2f} [{overall.low:+.2f}, {overall.high:+.2f}]"
        parts.append(
            f"gain {interval} over {overall.pairs} pairs (95 % bootstrap), interquartile mean "
            f"{round(overall.iqm, 2) + 0.0:+.2f}, better in {overall.probability:.0%} of seeds"
        )
    except TooFew as few:
        refused[str(few)] = None
    return f"{row} against {evidence.versus}: {'; '.join(parts)}."


def _on_pairs(differences: Sequence[Paired], metric: Metric, refused: dict[str, None]) -> str:
    """On how many pairs the interval is on either side of 0; the difference itself, if there is one pair."""
    known = [difference for difference in differences if difference.n > 1]
    if not known:
        refused["a paired interval needs two common seeds, and there is one"] = None
        return f"{_count(differences)} without an interval"
    better, worse = ("above", "below") if metric.higher_is_better else ("below", "above")
    if len(known) == 1:
        (one,) = known
        side = {better: "better", worse: "worse", "": "not told apart"}[one.against]
        return f"{side}, paired difference {one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}] over {one.n} seeds"
    sides = [difference.against for difference in known]
    return f"better on {sides.count(better)} of {_count(known)}, worse on {sides.count(worse)} (95 % t-intervals)"


def _sign_flips(differences: Sequence[Paired], refused: dict[str, None]) -> list[str]:
    p = [difference.p for difference in differences if difference.p is not None]
    if not p:
        most = max(difference.n for difference in differences)
        refused[f"the exact sign-flip test needs {FEWEST} to 20 common seeds, and the pairs have {most}"] = None
        return []
    if len(p) == 1:
        return [f"sign-flip {_p(p[0])}"]
    return [f"sign-flip p below .05 on {sum(value < 0.05 for value in p)} of {len(p)} pairs"]


def _of_ranks(found: Ranks) -> str:
    names = ", ".join(f"{row} {rank:.1f}" for row, rank in found.mean.items())
    text = f"Mean ranks over {found.pairs} pairs (Friedman {_p(found.friedman_p)}): {names}"
    if found.cliques:
        text += f"; not told apart: {'; '.join(', '.join(clique) for clique in found.cliques)}"
    if found.left_out:
        text += f"; left out for lack of a pair: {', '.join(found.left_out)}"
    return f"{text}."


def _count(differences: Sequence[Paired]) -> str:
    return counted(len(differences), "pair")


def _p(p: float) -> str:
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")
