"""Results of a sweep, from records made here: means by hand, and no choice by what is not finished."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdtable.planning.sweep import Sweep, Trial
from kdtable.recipes.metrics import CLASSIFICATION
from kdtable.report.sweep import SweepResult, sweep_result

MAIN = CLASSIFICATION[0]
GRID = [(("a", a), ("b", b)) for a in "12" for b in "34"]


def found(values: Mapping[int, Mapping[tuple[str, int], float | None]], skipped: tuple[str, ...] = ()) -> SweepResult:
    """Of trials by number: for pair and seed the stored validation accuracy, ``None`` of a failed run."""
    trials = tuple(Trial("at", GRID[number]) for number in values)
    planned, records = [], []
    for number, of_trial in values.items():
        runs = []
        for (pair, seed), value in of_trial.items():
            run = SimpleNamespace(id=f"{number}{pair}{seed}", seed=seed, data=SimpleNamespace(validation=20))
            reason = "no" if pair in skipped else None
            runs.append(SimpleNamespace(run=run, pair=pair, not_applicable=reason, prerequisite=False))
            measured = {"validation-top1": value, "top1": 0.0}
            records.append(
                SimpleNamespace(
                    id=run.id,
                    done=value is not None,
                    protocol=SimpleNamespace(main=MAIN),
                    metrics_of=lambda which, measured=measured: measured if which == "validation" else None,
                )
            )
        planned.append(runs)
    sweep: Any = Sweep(trials, {"at": ()}, {"at": ("a", "b")}, {"at": {}})
    stored: Any = records
    return sweep_result(sweep, planned, stored)


def test_means_are_over_pairs_first_and_deviations_over_seeds() -> None:
    result = found(
        {
            0: {("p", 1): 0.5, ("p", 2): 0.75, ("q", 1): 0.25, ("q", 2): 0.0},
            1: {("p", 1): 0.5, ("p", 2): 0.5, ("q", 1): 0.5, ("q", 2): 0.5},
        }
    )
    (method,) = result.methods
    first, second = method.trials
    assert first.by_pair == {"p": 62.5, "q": 12.5}
    assert first.by_seed == (37.5, 37.5)
    assert (first.mean, first.std) == (37.5, 0.0)
    assert method.best is second
    assert (result.seeds, result.pairs, result.held_out) == (2, ("p", "q"), 20)
    assert result.metric.stored == "validation-top1"


def test_the_sample_deviation_and_a_single_seed() -> None:
    (trial,) = found({0: {("p", 1): 0.5, ("p", 2): 0.25}}).methods[0].trials
    assert trial.std == pytest.approx(12.5 * 2**0.5)
    (alone,) = found({0: {("p", 1): 0.5}}).methods[0].trials
    assert alone.std is None


def test_an_unfinished_trial_is_not_chosen_and_of_equals_the_first_is() -> None:
    (method,) = found({0: {("p", 1): 0.5}, 1: {("p", 1): 0.9, ("p", 2): None}, 2: {("p", 1): 0.5}}).methods
    assert method.trials[1].lacking == "1 of 2 not done"
    assert method.trials[1].mean is None
    assert method.best is method.trials[0]
    assert found({0: {("p", 1): None}}).methods[0].best is None


def test_pairs_that_a_method_cannot_run_on_do_not_count() -> None:
    (method,) = found({0: {("p", 1): 0.5, ("q", 1): 0.9}}, skipped=("q",)).methods
    assert method.trials[0].by_pair == {"p": 50.0}
    (none,) = found({0: {("p", 1): 0.5}}, skipped=("p",)).methods
    assert (none.trials[0].lacking, none.best) == ("N/A", None)


def test_a_heat_map_frames_the_best_setting(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra 'figures'")
    from matplotlib.patches import Rectangle

    from kdtable.report.figures import save
    from kdtable.report.figures.heatmap import draw

    result = found({0: {("p", 1): 0.25}, 1: {("p", 1): 0.5}, 2: {("p", 1): 0.75}, 3: {("p", 1): None}})
    (axes,) = draw(result).findobj(lambda artist: hasattr(artist, "get_xticklabels"))
    assert [text.get_text() for text in axes.texts] == ["25.00", "50.00", "75.00", "—"]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(round(frame.get_x() + 0.48), round(frame.get_y() + 0.46)) for frame in frames] == [(0, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("a", "b")
    for path in (tmp_path / "one.svg", tmp_path / "two.svg"):
        save(lambda: draw(result), path)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
