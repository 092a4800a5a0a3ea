"""Statistics of result tables: intervals, tests, ranks and overall gains. Pure functions of numbers.

Three units are kept apart: *seeds* of one pair, which are paired (equal start, equal batches); *pairs* of a table, each
the mean of its seeds; and the *whole table*. ``docs/statistics.md`` has formulas and sources.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from kdtable.errors import BadRequest

#: Error level of intervals and tests.
ALPHA: Final = 0.05
#: Fewest units at which an exact sign test can fall below `ALPHA`: 2 / 2 ** 6 = .031.
FEWEST: Final = 6
#: Most seeds of the sign-flip test: it lists 2 ** n sums.
MOST_SEEDS: Final = 20
#: Fewest seeds of each pair for a bootstrap interval; with two, it covers 92 % in simulated tables of ten pairs.
FEWEST_SEEDS: Final = 3
#: Fewest pairs of a bootstrap interval; of fewer, percentile intervals cover far less than 95 %.
FEWEST_PAIRS: Final = 10
DRAWS: Final = 10_000
#: Decimals at which differences count as equal: 70.3 - 70.1 and 0.2 differ in floating point.
_DIGITS: Final = 9

_Floats = npt.NDArray[np.floating[Any]]

#: 97.5 % quantiles of Student's t with 1, 2, .. degrees of freedom, as scipy.special.stdtrit gives them. Importing
#: that takes a third of a second.
_T: Final[_Floats] = np.array(
    [
        12.706204736174694, 4.302652729749462, 3.1824463052837078, 2.7764451051977934, 2.5705818356363146,
        2.4469118511449786, 2.364624251592784, 2.306004135204166, 2.262157162798205, 2.228138851986274,
        2.200985160091639, 2.1788128296672284, 2.1603686564627913, 2.144786687917804, 2.131449545559776,
        2.1199052992212546, 2.1098155778333156, 2.1009220402410382, 2.0930240544083087, 2.085963447265864,
        2.0796138447276795, 2.0738730679040254, 2.0686576104190486, 2.0638985616280245, 2.0595385527532972,
        2.0555294386428735, 2.0518305164802846, 2.0484071417952454, 2.045229642132703, 2.0422724563012378,
        2.039513446396408, 2.0369333434601016, 2.0345152974493383, 2.0322445093177186, 2.030107928250343,
        2.0280940009804502, 2.0261924630291093, 2.0243941639119694, 2.022690920036761, 2.021075390306273,
        2.019540970441376, 2.0180817028184443, 2.016692199227824, 2.0153675744437636, 2.014103388880846,
        2.012895598919429, 2.0117405137297655, 2.010634757624232, 2.0095752371292392, 2.008559112100761,
        2.007583770315836, 2.006646805061688, 2.0057459953178687, 2.0048792881880564, 2.0040447832891455,
        2.003240718847872, 2.002465459291007, 2.0017174841452356, 2.000995378088267, 2.0002978220142604,
    ]
)  # fmt: skip


class TooFew(BadRequest):
    """Too few seeds, pairs or methods for a statistic. The text says how many it needs, and why."""


@dataclass(frozen=True, slots=True)
class Paired:
    """A mean paired difference over ``n`` seeds, and its 95 % interval (NaN below two).

    ``p`` is that of the exact sign-flip test; ``None`` below six seeds, or above 20.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float | None = None

    @property
    def against(self) -> str:
        """``above`` or ``below`` where the interval excludes 0, else empty."""
        return "above" if self.low > 0 else "below" if self.high < 0 else ""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Mean ranks of the methods that have a number for every pair (1 is best, best first).

    Attributes:
        friedman_p: of the hypothesis that all methods are equal.
        mean: method to mean rank.
        cliques: maximal sets of methods that no test tells apart, best first. They may overlap.
        left_out: methods that lack a pair.
        pairs: number of pairs.
    """

    friedman_p: float
    mean: "pd.Series[float]"
    cliques: list[tuple[str, ...]]
    left_out: tuple[str, ...]
    pairs: int


@dataclass(frozen=True, slots=True)
class Gain:
    """Gain over a baseline in a whole table, positive if better.

    Attributes:
        mean: mean over pairs of the mean over seeds.
        iqm: interquartile mean over all seeds of all pairs.
        low: end of the mean's 95 % interval.
        high: other end.
        pairs: number of pairs.
        probability: that a seed of the method beats the same seed of the baseline; equal ones count half.
    """

    mean: float
    iqm: float
    low: float
    high: float
    pairs: int
    probability: float


def paired(ours: "pd.Series[float]", baseline: "pd.Series[float]") -> Paired:
    """Compare two methods seed by seed: mean of (ours - baseline) over common seeds, with a t-interval.

    Args:
        ours: value by seed.
        baseline: value by seed.

    Example:
        paired(pd.Series({1: 70.0, 2: 71.0}), pd.Series({1: 69.0, 2: 69.5})).mean  # 1.25
    """
    gaps = (ours - baseline).dropna().to_numpy(dtype=float)
    mean, low, high = (float(values[0]) for values in intervals(gaps[:, None]))
    return Paired(mean, low, high, len(gaps), sign_flip(gaps) if FEWEST <= len(gaps) <= MOST_SEEDS else None)


def intervals(gaps: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Mean of each column of ``gaps`` (seeds, columns), NaN where a seed is missing, and its 95 % t-interval.

    Returns:
        Means, lower and upper ends. A mean is NaN without seeds; the ends are NaN below two.
    """
    n = np.sum(~np.isnan(gaps), axis=0)
    total = np.nansum(gaps, axis=0)
    mean = np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = np.nansum((gaps - mean) ** 2, axis=0)
    variance = np.divide(squares, n - 1, out=np.full(n.shape, np.nan), where=n > 1)
    half = quantile(np.maximum(n - 1, 1)) * np.sqrt(variance / np.maximum(n, 1))
    return mean, mean - half, mean + half


def quantile(freedom: npt.NDArray[np.integer[Any]]) -> _Floats:
    """97.5 % quantiles of Student's t for degrees of freedom (at least 1): the factors of 95 % intervals."""
    if not (freedom <= len(_T)).all():
        from scipy.special import stdtrit

        return np.asarray(stdtrit(freedom, 1 - ALPHA / 2))
    found: _Floats = _T[freedom - 1]
    return found


def sign_flip(gaps: _Floats) -> float:
    """Exact two-sided p that the mean of ``gaps`` (n,) is 0: the share of all 2 ** n signs with as large a sum."""
    sums = np.zeros(1)
    for gap in gaps:
        sums = np.concatenate([sums + gap, sums - gap])
    return float(np.mean(np.abs(sums) >= abs(gaps.sum()) - 10.0**-_DIGITS))


def marks(scores: pd.DataFrame, higher_is_better: bool = True) -> dict[str, str]:
    """Which methods of one pair are ``best``, ``tied`` with it, and ``second``; empty for others.

    The second is the next best that is not tied with the best. Methods that cannot be compared with the best, for lack
    of two common seeds, are not marked; neither is a best that no method can be compared with.

    Args:
        scores: seeds down, methods across, of one protocol; NaN where a run is missing.
        higher_is_better: direction of the metric.
    """
    names, values = [str(name) for name in scores.columns], scores.to_numpy(dtype=float)
    mean, _, _ = intervals(values)
    sign = -1 if higher_is_better else 1
    order = [place for place in np.argsort(sign * mean, kind="stable") if not np.isnan(mean[place])]
    found = dict.fromkeys(names, "")
    if len(order) < 2:
        return found
    best, *others = order
    _, low, high = intervals(values[:, others] - values[:, [best]])
    if np.isnan(low).all():
        return found
    found[names[best]] = "best"
    tied = (low <= 0) & (high >= 0)
    apart = [place for place, lower, equal in zip(others, low, tied, strict=True) if not (equal or np.isnan(lower))]
    found |= {names[place]: "tied" for place, equal in zip(others, tied, strict=True) if equal}
    return found | {names[place]: "second" for place in apart[:1]}


def over_pairs(means: pd.DataFrame, versus: str) -> pd.DataFrame:
    """Compare every method with ``versus`` over the pairs of a table: exact Wilcoxon signed-rank test, with Holm.

    Args:
        means: pairs down, methods across: means over seeds; NaN where missing.
        versus: a column of ``means``.

    Returns:
        A line per other method: ``row``, ``n`` (common pairs), ``difference`` (mean of row - versus), ``p``, ``p_holm``
        (both NaN below six common pairs).

    Raises:
        TooFew: no method shares six pairs with ``versus``.
    """
    gaps = means.drop(columns=versus).sub(means[versus], axis=0)
    n = gaps.notna().sum()
    if not (n >= FEWEST).any():
        raise TooFew(
            f"the test over pairs needs {FEWEST} pairs with numbers for {versus} and another method, "
            f"and the table has {n.max() if len(n) else 0}: of fewer no p falls below .05"
        )
    p = np.array([_wilcoxon(gap.dropna()) if gap.count() >= FEWEST else np.nan for _, gap in gaps.items()])
    found = {"row": list(gaps), "n": n.to_numpy(), "difference": gaps.mean().to_numpy(), "p": p, "p_holm": holm(p)}
    return pd.DataFrame(found)


def _wilcoxon(gaps: "pd.Series[float]") -> float:
    """Two-sided p; exact up to 50 pairs, or 13 where some are equal. Zeros are left out."""
    from scipy.stats import wilcoxon

    rounded = gaps.round(_DIGITS)
    return 1.0 if (rounded == 0).all() else float(wilcoxon(rounded, zero_method="wilcox").pvalue)


def holm(p: Sequence[float] | _Floats) -> _Floats:
    """Holm's adjustment of p values; NaN stays and is not counted."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int(np.sum(~np.isnan(p)))]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * factors), 1)
    return adjusted


def ranks(means: pd.DataFrame, higher_is_better: bool = True) -> Ranks:
    """Mean ranks over pairs: Friedman's test, then Wilcoxon tests of all pairs of methods with Holm.

    Args:
        means: pairs down, methods across: means over seeds; NaN where missing.
        higher_is_better: direction of the metric.

    Raises:
        TooFew: fewer than six pairs, or fewer than three methods with all of them.
    """
    means = means.dropna(how="all")
    complete = means.dropna(axis="columns")
    left_out = tuple(str(row) for row in means if row not in complete)
    if len(means) < FEWEST or len(complete.columns) < 3:
        raise TooFew(
            f"ranks need {FEWEST} pairs and three methods with numbers for all of them, "
            f"and the table has {_counted(len(means), 'pair')} and {_counted(len(complete.columns), 'such method')}"
        )
    from scipy.stats import friedmanchisquare

    complete = complete.round(_DIGITS)
    ranked = complete.rank(axis="columns", ascending=not higher_is_better)
    mean = ranked.mean().sort_values(kind="stable")
    equal = bool((ranked == ranked.iloc[0, 0]).all(axis=None))
    p = 1.0 if equal else float(friedmanchisquare(*(complete[row] for row in complete)).pvalue)
    cliques = _cliques(complete[mean.index]) if p < ALPHA else [tuple(map(str, mean.index))]
    return Ranks(p, mean, cliques, left_out, len(means))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _cliques(means: pd.DataFrame) -> list[tuple[str, ...]]:
    """Maximal sets of two or more columns that no Wilcoxon test with Holm tells apart, in the order of the columns."""
    from itertools import combinations

    import networkx as nx

    pairs = list(combinations(means.columns, 2))
    p = holm([_wilcoxon(means[a] - means[b]) for a, b in pairs])
    graph = nx.Graph(pair for pair, adjusted in zip(pairs, p, strict=True) if adjusted >= ALPHA)
    place = {row: number for number, row in enumerate(means.columns)}
    cliques = sorted(sorted(place[row] for row in clique) for clique in nx.find_cliques(graph))
    return [tuple(str(means.columns[number]) for number in clique) for clique in cliques]


def gain(gains: pd.DataFrame, draws: int = DRAWS) -> Gain:
    """Gain over a baseline in a whole table, with a 95 % bootstrap interval that resamples seeds inside pairs.

    Args:
        gains: columns ``pair``, ``seed``, ``value``: the gain of a seed over the baseline's, positive if better.
        draws: number of bootstrap draws.

    Raises:
        TooFew: fewer than ten pairs, or a pair with fewer than three seeds.
    """
    groups = {str(pair): group.to_numpy(dtype=float) for pair, group in gains.dropna().groupby("pair")["value"]}
    if len(groups) < FEWEST_PAIRS:
        raise TooFew(
            f"the bootstrap interval needs {FEWEST_PAIRS} pairs, and the table has {len(groups)}: "
            "of fewer it would cover far less than 95 %"
        )
    if few := [pair for pair, values in groups.items() if len(values) < FEWEST_SEEDS]:
        raise TooFew(f"the bootstrap interval needs {FEWEST_SEEDS} seeds for each pair, and {', '.join(few)} has fewer")
    from scipy.stats import trim_mean

    values = list(groups.values())
    low, high = np.quantile(bootstrap(values, draws), [ALPHA / 2, 1 - ALPHA / 2])
    mean = np.mean([pair.mean() for pair in values])
    wins = np.mean([np.mean((pair > 0) + (pair == 0) / 2) for pair in values])
    iqm = trim_mean(np.concatenate(values), 0.25)
    return Gain(float(mean), float(iqm), float(low), float(high), len(values), float(wins))


def bootstrap(groups: Sequence[_Floats], draws: int = DRAWS) -> _Floats:
    """Draws of the mean over groups of the mean inside a group, by a generator of fixed seed.

    Each group of n values is resampled by itself, and its deviation scaled by sqrt(n / (n - 1)): the variance of a
    resampled mean is (n - 1) / n of the unbiased one, which matters at three seeds.

    Args:
        groups: arrays (..., n), each with its own n; leading axes are tables that are resampled alike.
        draws: number of draws.

    Returns:
        Shape (..., draws).
    """
    generator = np.random.default_rng(0)
    total = np.zeros(draws)
    for values in groups:
        n, mean = values.shape[-1], values.mean(axis=-1, keepdims=True)
        drawn = values[..., generator.integers(0, n, (draws, n))].mean(axis=-1)
        total = total + mean + (drawn - mean) * np.sqrt(n / (n - 1))
    return total / len(groups)


def resolution(columns: Iterable[pd.DataFrame]) -> float:
    """Half-width of the paired 95 % interval of two methods of one pair, pooled over a table.

    Differences between two methods below it cannot be told from noise. NaN if no pair has two methods with two seeds.

    Args:
        columns: for each pair, seeds down and methods across; NaN where a run is missing.
    """
    found = []
    for scores in columns:
        values = scores.to_numpy(dtype=float)
        values = values[~np.isnan(values).all(axis=1)]
        block = values[:, ~np.isnan(values).any(axis=0)]
        n, methods = block.shape
        if n < 2 or methods < 2:
            continue
        # What is left without the means of methods and seeds: its variance is half that of a paired difference.
        rest = block - block.mean(axis=0) - block.mean(axis=1, keepdims=True) + block.mean()
        variance = 2 * (rest**2).sum() / ((n - 1) * (methods - 1))
        found.append(quantile(np.array([n - 1]))[0] ** 2 * variance / n)
    return float(np.sqrt(np.mean(found))) if found else float("nan")
