"""Statistics against scipy, against brute force, and against simulations whose answer is known."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from kdtable.report.statistics import (
    TooFew,
    bootstrap,
    gain,
    holm,
    intervals,
    marks,
    over_pairs,
    paired,
    quantile,
    ranks,
    resolution,
    sign_flip,
)

TABLES = 2000


def by_seed(*values: float) -> "pd.Series[float]":
    return pd.Series(values, index=range(1, len(values) + 1), dtype=float)


def table(pairs: int, methods: dict[str, float], spread: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """Means of methods that differ by ``methods`` from a level of each pair."""
    draw = np.random.default_rng(seed)
    level = draw.uniform(60, 75, (pairs, 1))
    values = level + np.array(list(methods.values())) + spread * draw.standard_normal((pairs, len(methods)))
    return pd.DataFrame(values, [f"pair {i}" for i in range(pairs)], list(methods))


def gains(values: np.ndarray) -> pd.DataFrame:
    """Gains of an array (pairs, seeds) in long form."""
    return pd.DataFrame([(f"p{i}", s, v) for i, row in enumerate(values) for s, v in enumerate(row)]).set_axis(
        ["pair", "seed", "value"], axis=1
    )


# One pair: seeds.


def test_the_quantiles_are_scipys() -> None:
    for freedom in (np.arange(1, 61), np.array([1, 200]), np.array([], dtype=int)):
        assert quantile(freedom) == pytest.approx(special.stdtrit(freedom, 0.975), rel=1e-14)


def test_the_paired_interval_is_scipys() -> None:
    ours, baseline = by_seed(70.1, 70.9, 71.3, 70.2), by_seed(69.8, 70.1, 71.2, 70.3)
    found = paired(ours, baseline)
    expected = stats.ttest_rel(ours, baseline).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.mean == pytest.approx((ours - baseline).mean())
    assert (found.n, found.p, found.against) == (4, None, "")


def test_only_common_seeds_are_compared() -> None:
    found = paired(pd.Series({1: 5.0, 2: 6.0, 7: 90.0}), pd.Series({2: 5.0, 1: 4.5, 3: 0.0}))
    assert (found.n, found.mean) == (2, 0.75)


def test_one_seed_has_no_interval_and_none_has_nothing() -> None:
    one, none = paired(by_seed(5), by_seed(4)), paired(pd.Series({1: 5.0}), pd.Series({2: 4.0}))
    assert (one.mean, one.n, one.against) == (1, 1, "")
    assert np.isnan([one.low, one.high, none.mean, none.low]).all()


def test_an_interval_that_excludes_zero_says_on_which_side() -> None:
    level, noise = by_seed(60, 61, 62, 63), by_seed(0.1, 0.0, -0.1, 0.0)
    assert paired(level + 1 + noise, level).against == "above"
    assert paired(level - 1 + noise, level).against == "below"


@pytest.mark.parametrize("n", [6, 9])
def test_the_sign_flip_p_is_that_of_brute_force_and_of_scipy(n: int) -> None:
    gaps = np.random.default_rng(n).normal(0.4, 1, n)
    sums = [abs(sum(s * g for s, g in zip(signs, gaps, strict=True))) for signs in product((1, -1), repeat=n)]
    expected = np.mean([total >= abs(gaps.sum()) - 1e-9 for total in sums])
    scipys = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    found = paired(by_seed(*gaps), by_seed(*np.zeros(n))).p
    assert found == pytest.approx(expected)
    assert found == pytest.approx(scipys)


def test_the_sign_flip_p_has_its_least_value_at_six_seeds_and_none_below() -> None:
    zeros = by_seed(*np.zeros(6))
    assert paired(by_seed(1, 2, 3, 4, 5, 6), zeros).p == 2 / 2**6
    assert paired(by_seed(1, 2, 3, 4, 5), zeros).p is None
    assert paired(by_seed(*range(1, 22)), by_seed(*np.zeros(21))).p is None
    assert sign_flip(np.array([0.1, 0.2, -0.3, 0.0])) == 1


def test_t_intervals_cover_95_percent_of_simulated_tables() -> None:
    draw = np.random.default_rng(1)
    for n in (3, 5):
        _, low, high = intervals(0.5 + 0.3 * draw.standard_normal((n, TABLES)))
        assert np.mean((low <= 0.5) & (high >= 0.5)) == pytest.approx(0.95, abs=0.02)


def test_intervals_of_columns_with_missing_seeds_are_those_of_each_alone() -> None:
    gaps = np.random.default_rng(2).standard_normal((5, 4))
    gaps[0, 1] = gaps[1:, 2] = gaps[:, 3] = np.nan
    found = np.transpose(intervals(gaps))
    alone = [paired(by_seed(*column), by_seed(*np.zeros(5))) for column in gaps.T]
    assert found == pytest.approx(np.array([(p.mean, p.low, p.high) for p in alone]), nan_ok=True)


def scores(**methods: list[float]) -> pd.DataFrame:
    return pd.DataFrame(methods, index=[1, 2, 3])


def test_marks_tell_the_best_from_what_is_tied_with_it_and_from_the_second() -> None:
    found = scores(kd=[70, 71, 72], crd=[75, 76.2, 77.1], at=[75.2, 75.9, 76.9], sp=[70.9, 72.1, 73], cc=[69, 70, 70])
    assert marks(found) == {"kd": "", "crd": "best", "at": "tied", "sp": "second", "cc": ""}


def test_of_an_error_the_lowest_is_the_best() -> None:
    assert marks(scores(a=[1, 2, 3], b=[2, 3.1, 4]), higher_is_better=False) == {"a": "best", "b": "second"}


def test_equal_methods_are_tied() -> None:
    assert marks(scores(a=[1, 2, 3], b=[1, 2, 3])) == {"a": "best", "b": "tied"}


def test_nothing_is_marked_where_no_interval_supports_it() -> None:
    one = scores(a=[1, 2, 3], b=[2, 3, 4]).loc[[1]]
    assert marks(one) == {"a": "", "b": ""}
    assert marks(scores(a=[1, 2, 3])) == {"a": ""}
    assert marks(scores(a=[1, 2, 3], b=[np.nan] * 3)) == {"a": "", "b": ""}


def test_a_method_without_two_common_seeds_is_not_marked() -> None:
    found = scores(a=[5, 6, 7.1], b=[4.9, np.nan, np.nan], c=[1, 2, 3])
    assert marks(found) == {"a": "best", "b": "", "c": "second"}


def test_the_resolution_is_the_half_width_of_a_known_spread() -> None:
    draw = np.random.default_rng(3)
    columns = [
        pd.DataFrame(70 + 5 * draw.standard_normal((3, 1)) + [0, 1, 2, 3] + 0.2 * draw.standard_normal((3, 4)))
        for _ in range(200)
    ]
    expected = stats.t.ppf(0.975, 2) * 0.2 * np.sqrt(2 / 3)
    assert resolution(columns) == pytest.approx(expected, rel=0.1)


def test_the_resolution_of_two_methods_is_the_half_width_of_their_interval() -> None:
    found = scores(a=[1, 2.2, 3], b=[2, 3, 4.1], alone=[np.nan, np.nan, 5])
    gap = paired(found["a"], found["b"])
    assert resolution([found, found.iloc[:1]]) == pytest.approx((gap.high - gap.low) / 2)
    assert np.isnan(resolution([found.iloc[:1]]))


# A table: pairs.


def test_tests_over_pairs_are_scipys_and_holms() -> None:
    means = table(12, {"kd": 0, "crd": 0.3, "at": 0.05, "sp": -0.02})
    found = over_pairs(means, "kd").set_index("row")
    p = {row: stats.wilcoxon(means[row] - means["kd"], method="exact").pvalue for row in ("crd", "at", "sp")}
    assert found["p"].to_dict() == pytest.approx(p)
    assert found["difference"].to_dict() == pytest.approx({row: (means[row] - means["kd"]).mean() for row in p})
    assert found["p_holm"]["crd"] == pytest.approx(3 * p["crd"])
    assert set(found["n"]) == {12}


def test_pairs_without_a_difference_are_left_out_of_the_test_and_ties_are_exact() -> None:
    gaps = [0.0, 0.1, 0.1, 0.2, 0.3, -0.1, 0.4, 0.3]
    means = pd.DataFrame({"kd": [60.0] * 8, "x": [60 + gap for gap in gaps]})
    signed = np.sign(gaps[1:]) * stats.rankdata(np.abs(gaps[1:]))
    assert over_pairs(means, "kd")["p"][0] == pytest.approx(sign_flip(signed))


def test_equal_methods_have_a_p_of_1() -> None:
    means = pd.DataFrame({"kd": np.arange(6.0), "x": np.arange(6.0)})
    assert over_pairs(means, "kd")["p_holm"][0] == 1


def test_a_method_of_too_few_pairs_has_no_p_and_does_not_count_for_holm() -> None:
    means = table(8, {"kd": 0, "crd": 0.5, "new": 0.5})
    means.loc["pair 2":, "new"] = np.nan
    found = over_pairs(means, "kd").set_index("row")
    assert np.isnan(found["p_holm"]["new"])
    assert found["p_holm"]["crd"] == found["p"]["crd"]
    assert found["n"]["new"] == 2


def test_a_test_over_five_pairs_is_refused() -> None:
    with pytest.raises(TooFew, match=r"needs 6 pairs .* and the table has 5"):
        over_pairs(table(5, {"kd": 0, "crd": 1}), "kd")
    with pytest.raises(TooFew, match="the table has 0"):
        over_pairs(table(9, {"kd": 0}), "kd")


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])


# The whole table.


def test_ranks_and_friedman_are_scipys() -> None:
    means = table(12, {"a": 0, "b": 1, "c": 2, "d": 2})
    found = ranks(means)
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*means.to_numpy().T).pvalue)
    assert list(found.mean.index[2:]) == ["b", "a"]
    assert found.mean.sum() == pytest.approx(1 + 2 + 3 + 4)
    assert found.pairs == 12
    (clique,) = found.cliques
    assert set(clique) == {"c", "d"}
    errors = ranks(-means, higher_is_better=False)
    assert errors.mean.to_dict() == found.mean.to_dict()


def test_cliques_are_maximal_overlap_and_hold_no_two_methods_that_differ() -> None:
    means = table(12, {f"m{i}": 0.12 * i for i in range(6)}, spread=0.15, seed=1)
    found = ranks(means)
    pairs = list(combinations(found.mean.index, 2))
    p = holm([stats.wilcoxon(means[a] - means[b], method="exact").pvalue for a, b in pairs])
    alike = {frozenset(pair) for pair, adjusted in zip(pairs, p, strict=True) if adjusted >= 0.05}
    subsets = [set(c) for n in range(2, 7) for c in combinations(found.mean.index, n)]
    cliques = [s for s in subsets if all(frozenset(pair) in alike for pair in combinations(s, 2))]
    maximal = [s for s in cliques if not any(s < other for other in cliques)]
    assert len(maximal) > 1
    assert sorted(map(sorted, found.cliques)) == sorted(map(sorted, maximal))


def test_methods_that_friedman_does_not_tell_apart_are_one_clique() -> None:
    found = ranks(table(8, {"a": 0, "b": 0, "c": 0}))
    assert found.friedman_p > 0.05
    assert [set(clique) for clique in found.cliques] == [{"a", "b", "c"}]
    assert ranks(pd.DataFrame({name: [1.0] * 6 for name in "abc"})).friedman_p == 1


def test_incomplete_methods_are_left_out_by_name() -> None:
    means = table(7, {"a": 0, "b": 1, "c": 2, "late": 3})
    means.loc["pair 3", "late"] = np.nan
    means.loc["empty"] = np.nan
    found = ranks(means)
    assert found.left_out == ("late",)
    assert list(found.mean.index) == ["c", "b", "a"]


@pytest.mark.parametrize(("pairs", "methods"), [(5, "abc"), (6, "ab")])
def test_ranks_of_too_few_are_refused(pairs: int, methods: str) -> None:
    with pytest.raises(TooFew, match=f"the table has {pairs} pairs and {len(methods)} such methods"):
        ranks(table(pairs, dict.fromkeys(methods, 0.0)))


def test_the_gain_is_a_mean_of_pairs_and_its_interval_that_of_many_draws() -> None:
    values = np.random.default_rng(5).normal(0.5, 0.4, (12, 5))
    found = gain(gains(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.iqm == pytest.approx(stats.trim_mean(values, 0.25, axis=None))
    assert found.probability == pytest.approx((values > 0).mean())
    error = np.sqrt((values.var(axis=1, ddof=1) / 5).mean() / 12)
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.006)
    assert found == gain(gains(values))


def test_the_bootstraps_draws_are_those_of_a_loop_over_seeds() -> None:
    groups = [np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0])]
    found = bootstrap(groups, 20_000)
    assert found.mean() == pytest.approx(np.mean([7 / 3, 0.5]), abs=0.02)
    assert found.var() == pytest.approx(sum(g.var(ddof=1) / len(g) for g in groups) / 4, rel=0.03)


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_bootstrap_covers_95_percent_of_simulated_tables(seeds: int) -> None:
    draw = np.random.default_rng(seeds)
    truth = draw.uniform(-0.5, 1.5, 10)  # a gain of its own for each pair
    pairs = truth[:, None, None] + 0.3 * draw.standard_normal((10, TABLES, seeds))
    low, high = np.quantile(bootstrap(list(pairs), 500), [0.025, 0.975], axis=1)
    assert np.mean((low <= truth.mean()) & (truth.mean() <= high)) == pytest.approx(0.95, abs=0.03)


def test_without_its_factor_the_bootstrap_of_three_seeds_would_cover_too_little() -> None:
    draw = np.random.default_rng(7)
    pairs = 0.3 * draw.standard_normal((10, TABLES, 3))
    draws, mean = bootstrap(list(pairs), 500), pairs.mean(axis=(0, 2))[:, None]
    low, high = np.quantile(mean + (draws - mean) * np.sqrt(2 / 3), [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.92


def test_a_gain_that_is_equal_counts_half() -> None:
    values = np.zeros((10, 3))
    values[0] = 1
    assert gain(gains(values)).probability == pytest.approx((3 + 27 / 2) / 30)


def test_the_bootstrap_is_refused_below_ten_pairs_and_for_two_seeds() -> None:
    with pytest.raises(TooFew, match="needs 10 pairs, and the table has 9"):
        gain(gains(np.ones((9, 3))))
    with pytest.raises(TooFew, match="needs 3 seeds for each pair, and p3 has fewer"):
        gain(gains(np.ones((10, 3))).drop(index=10))
