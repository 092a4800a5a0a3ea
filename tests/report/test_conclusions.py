"""Statistics in words, of tables whose answers are known."""

from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd
import pytest

from kdtable.recipes.metrics import METRICS
from kdtable.report.conclusions import sentences
from kdtable.report.result_table import CELLS, VALUES, Heading, ResultTable


def made(
    pairs: int, seeds: int, methods: dict[str, float], metric: str = "top1", group: dict[str, int] | None = None
) -> ResultTable:
    """A table of methods that differ by ``methods`` from kd on every pair, with a little noise."""
    draw = np.random.default_rng(pairs + seeds)
    headings = tuple(Heading(f"t{i}:s{i}", f"t{i}:s{i}", METRICS[metric], f"t{i}", f"s{i}") for i in range(pairs))
    cells, values = [], []
    for row, gain in {"teacher": 9.0, "student": -5.0, "kd": 0.0, **methods}.items():
        for column, heading in enumerate(headings):
            found = 70 + column + gain + 0.05 * draw.standard_normal(seeds)
            about = {"row": row, "column": column, "pair": heading.pair, "metric": metric}
            cells.append(dict.fromkeys(CELLS, nan) | about | {"mean": found.mean(), "group": (group or {}).get(row, 0)})
            lines = [dict.fromkeys(VALUES) | about | {"seed": s, "value": v} for s, v in enumerate(found, start=1)]
            values += lines if row != "teacher" else []
    rows = ("teacher", "student", "kd", *methods)
    shown = (METRICS[metric],)
    frames = (pd.DataFrame(cells, columns=list(CELLS)), pd.DataFrame(values, columns=list(VALUES)))
    return ResultTable("Made up", "cifar100", headings, rows, *frames, versus="kd", seeds=seeds, metrics=shown)


def without(table: ResultTable, row: str, column: int) -> ResultTable:
    """The table, as if a cell had no finished run."""
    cells, values = table.cells.copy(), table.values
    cells.loc[(cells["row"] == row) & (cells["column"] == column), "mean"] = nan
    return replace(table, cells=cells, values=values[(values["row"] != row) | (values["column"] != column)])


def test_a_full_table_gets_every_statistic() -> None:
    crd, at, ranked, refused = sentences(made(12, 3, {"crd": 1.0, "at": -1.0}))
    assert crd.startswith("crd against kd: better on 12 of 12 pairs, worse on 0 (95 % t-intervals); mean difference +")
    assert "over 12 pairs, Wilcoxon p < .001 (p < .001 with Holm); gain +" in crd
    assert crd.endswith("better in 100% of seeds.")
    assert at.startswith("at against kd: better on 0 of 12 pairs, worse on 12")
    assert ranked == "Mean ranks over 12 pairs (Friedman p < .001): crd 1.0, kd 2.0, at 3.0."
    assert refused == "The exact sign-flip test needs 6 to 20 common seeds, and the pairs have 3."


def test_what_is_refused_is_said_once_with_its_reason() -> None:
    found = sentences(made(3, 3, {"crd": 1.0, "at": 0.0}))
    assert found[0] == "crd against kd: better on 3 of 3 pairs, worse on 0 (95 % t-intervals)."
    assert [text for text in found if "sign-flip" in text] == [
        "The exact sign-flip test needs 6 to 20 common seeds, and the pairs have 3."
    ]
    assert sum("test over pairs needs 6 pairs" in text for text in found) == 1
    assert sum("bootstrap interval needs 10 pairs, and the table has 3" in text for text in found) == 1
    assert sum("ranks need 6 pairs".lower() in text.lower() for text in found) == 1


def test_one_pair_of_six_seeds_has_its_difference_and_a_sign_flip_p() -> None:
    (first, *_) = sentences(made(1, 6, {"crd": 1.0}))
    assert first.startswith("crd against kd: better, paired difference +")
    assert first.endswith("over 6 seeds; sign-flip p = .031.")


def test_six_seeds_of_several_pairs_count_those_with_a_small_p() -> None:
    assert "sign-flip p below .05 on 2 of 2 pairs" in sentences(made(2, 6, {"crd": 1.0}))[0]


def test_a_lower_error_is_better() -> None:
    crd, _, ranked, *_ = sentences(made(12, 3, {"crd": -1.0, "at": 1.0}, "top1-error"))
    assert crd.startswith("crd against kd: better on 12 of 12 pairs")
    assert "; gain +1" in crd
    assert "mean difference -1" in crd
    assert "crd 1.0, kd 2.0, at 3.0" in ranked


def test_single_seeds_have_no_interval() -> None:
    found = sentences(made(2, 1, {"crd": 1.0}))
    assert found[0] == "crd against kd: 2 pairs without an interval."
    assert "A paired interval needs two common seeds, and there is one." in found


def test_a_method_that_lacks_a_pair_is_left_out_of_ranks_by_name_and_cliques_are_named() -> None:
    table = without(made(12, 3, {"crd": 1.0, "at": 1.0, "late": 2.0}), "late", 4)
    (ranked,) = [text for text in sentences(table) if text.startswith("Mean ranks")]
    assert "not told apart: " in ranked
    assert ranked.endswith("left out for lack of a pair: late.")
    assert any(text.startswith("late against kd: better on 11 of 11 pairs") for text in sentences(table))


def test_rows_of_another_recipe_are_not_compared() -> None:
    found = sentences(made(12, 3, {"crd": 1.0, "at": 0.5, "dih": 3.0}, group={"dih": 1}))
    assert "dih against kd: no common seed of one recipe." in found
    assert any(text.endswith("left out for lack of a pair: dih.") for text in found)


def test_the_plain_student_may_be_what_others_are_compared_with() -> None:
    found = sentences(replace(made(12, 3, {"crd": 1.0}), versus="student"))
    assert found[0].startswith("kd against student: better on 12 of 12 pairs")


@pytest.mark.parametrize("pairs", [1, 3])
def test_a_table_without_finished_runs_says_so(pairs: int) -> None:
    table = made(pairs, 1, {"crd": 1.0})
    empty = replace(table, cells=table.cells.assign(mean=nan), values=table.values.iloc[:0], seeds=0)
    assert sentences(empty)[0] == "crd against kd: no common seed of one recipe."
    assert sentences(replace(table, versus=None)) == [
        "No method is compared, since the table has no row to compare with."
    ]
