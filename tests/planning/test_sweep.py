"""Sweeps: which trials a request means, with equal budgets, and what is refused."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtable.errors import BadRequest
from kdtable.methods import METHODS
from kdtable.methods.ranges import Range
from kdtable.planning.request import Changes, DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.sweep import Sweep, Trial, necessary, options, plan_sweep
from kdtable.planning.teacher_refs import MissingTeacher


def planned(*sets: str, methods: tuple[str, ...] = ("dkd",), trials: int | None = None, **changes: object) -> Sweep:
    held_out = DataRequest(validation=100)
    request = Request(["resnet56:resnet20"], methods, [1], data=held_out, changes=Changes(overrides=sets, **changes))  # type: ignore[arg-type]
    return plan_sweep(request, trials)


def settings(sweep: Sweep) -> list[dict[str, str]]:
    return [dict(trial.settings) for trial in sweep.trials]


def test_a_grid_is_the_product_of_the_values() -> None:
    sweep = planned("beta=1,2", "temperature=2,4,8", "weight_decay=1e-4")
    assert settings(sweep) == [{"beta": b, "temperature": t} for b in "12" for t in "248"]
    assert sweep.fixed == {"dkd": (("weight_decay", "1e-4"),)}
    assert sweep.varied == {"dkd": ("beta", "temperature")}


def test_values_with_commas_are_given_one_by_one() -> None:
    sweep = planned("milestones=10,20", "milestones=15,25")
    assert [one["milestones"] for one in settings(sweep)] == ["10,20", "15,25"]
    courses = planned("schedule.dkd=steps:3/5,factor:0.1", "schedule.dkd=warmup:2")
    assert [one["schedule.dkd"] for one in settings(courses)] == ["steps:3/5,factor:0.1", "warmup:2"]
    texts = planned("at_stages=2,3", "at_stages=1", methods=("at",))
    assert [one["at_stages"] for one in settings(texts)] == ["2,3", "1"]
    names = planned("crop_fill=zero,reflect", "nesterov=true,false")
    assert len(names.trials) == 4


def test_a_trial_is_a_request_with_its_settings() -> None:
    sweep = planned("lr=0.1,0.2", "batch_size=32", "beta=2", epochs=3)
    asked = Request(["resnet56:resnet20"], ["dkd"], [1], changes=Changes(epochs=3))
    request = sweep.trials[1].request(asked, sweep.fixed["dkd"])
    assert request.methods == ["dkd"]
    assert request.changes == Changes(epochs=3, batch_size=32, lr=0.2, overrides=["beta=2"], may_repeat=True)
    words = list(options((*sweep.fixed["dkd"], *sweep.trials[1].settings)))
    assert words == ["--batch-size", "32", "--set", "beta=2", "--lr", "0.2"]


def test_methods_of_a_search_have_equal_budgets_and_begin_with_their_own_settings() -> None:
    sweep = planned(methods=("kd", "at", "dkd"), trials=8)
    assert Counter(trial.method for trial in sweep.trials) == {"kd": 8, "at": 8, "dkd": 8}
    for method, varied in sweep.varied.items():
        first, *others = [trial for trial in sweep.trials if trial.method == method]
        assert first.settings == ()
        assert all(tuple(dict(trial.settings)) == varied for trial in others)
        assert len({trial.settings for trial in others}) == 7
    assert sweep.varied == {
        "kd": ("weight.kd", "kd_temperature"),
        "at": ("weight.at",),
        "dkd": ("temperature", "alpha", "beta"),
    }
    assert sweep.ranges["at"] == {"weight.at": "100 to 10000"}
    assert sweep.value(sweep.trials[0], "kd_temperature") == "4 (own)"


def test_more_trials_begin_with_the_same_ones_and_company_changes_none() -> None:
    few, many = (planned(methods=methods, trials=n) for methods, n in ((("at",), 3), (("kd", "at"), 6)))
    assert [trial for trial in many.trials if trial.method == "at"][:3] == list(few.trials)
    assert few.trials[1] == Trial("at", (("weight.at", "139"),))  # pinned: stored trials are found again


def test_the_users_own_ranges_and_values() -> None:
    sweep = planned("lr=0.01..0.1", "temperature=4", methods=("vanilla", "dkd"), trials=5)
    assert sweep.varied == {"vanilla": ("lr",), "dkd": ("alpha", "beta", "lr")}
    assert sweep.fixed == {"vanilla": (), "dkd": (("temperature", "4"),)}
    assert all(0.01 <= float(one["lr"]) <= 0.1 for one in settings(sweep) if one)
    assert sweep.value(sweep.trials[0], "lr") == "(own)"
    whole = planned("batch_size=32..128", methods=("kd",), trials=9)
    assert all(32 <= int(one["batch_size"]) <= 128 for one in settings(whole)[1:])


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 1e5))
def test_draws_stay_in_their_range(fraction: float, own: float) -> None:
    value = float(Range(0.1, 10, relative=True).at(fraction, own))
    assert 0.099 * own <= value <= 10.1 * own
    assert 1 <= int(Range(1, 4, whole=True).at(fraction)) <= 4


def test_whole_draws_reach_both_ends_and_halves_are_geometric() -> None:
    whole = Range(2, 5, whole=True)
    assert {whole.at(n / 100) for n in range(100)} == {"2", "3", "4", "5"}
    assert Range(1, 16).at(0.5) == "4"
    assert Range(0.1, 10, relative=True).at(0.5, own=3000) == "3000"


#: Rows that declare no range: without a teacher, or with no term of their own in the main stage.
ALONE = {"vanilla", "heads", "tofd-teacher", "fsp"}


@pytest.mark.parametrize("row", [row for row in METHODS if row not in ALONE])
def test_every_other_method_declares_a_range_that_its_settings_take(row: str) -> None:
    from kdtable import papers
    from kdtable.methods import get
    from kdtable.methods.objective import Objective
    from kdtable.planning.overrides import Overrides

    paper = next(p for p in map(papers.load, papers.names()) if row in p.rows and p.task == "classification")
    request = Request([], [row], [1], paper=paper.name, data=DataRequest(validation=100))
    sweep, settings, method = plan_sweep(request, 4), paper.row(row), get(row)
    for trial in sweep.trials:
        overrides = Overrides([f"{key}={value}" for key, value in trial.settings])
        terms = overrides.weights(settings.terms)
        Objective.of(method.hyper, terms, overrides.params(method.hyper, settings.params, terms))
        overrides.check_all_used(may_repeat=True)


@pytest.mark.parametrize(
    ("sets", "methods", "trials", "sentence"),
    [
        ((), ("dkd",), None, "a sweep needs something to choose between"),
        (("beta=1",), ("dkd",), None, "a sweep needs something to choose between"),
        (("beta=1,,2",), ("dkd",), None, "--set beta=1,,2 has an empty value"),
        (("beta",), ("dkd",), None, "--set takes KEY=VALUE, not 'beta'"),
        (("beta=1,2",), ("kd", "dkd"), None, "kd has no setting 'beta', so the methods would have unequal numbers"),
        (("beta=1..2", "alpha=1,2"), ("dkd",), None, "--set beta=1..2 is a range for a random search: add --trials N"),
        (("beta=1,2",), ("dkd",), 4, "--set beta=1,2 is a grid: leave out --trials, or write a range (beta=LOW..HIGH)"),
        (("beta=0..2",), ("dkd",), 4, "a range is LOW..HIGH, both above 0"),
        (("beta=3..2",), ("dkd",), 4, "a range is LOW..HIGH, both above 0"),
        (("beta=a..2",), ("dkd",), 4, "--set beta=a..2 is no range of numbers: --set beta takes a number, not 'a'"),
        (("betta=1..2",), ("dkd",), 4, "no method of this sweep has a setting 'betta'"),
        (
            (),
            ("kd", "vanilla"),
            4,
            "vanilla declares no range to search: leave it out, or give it one such as --set lr",
        ),
        ((), ("kd",), 1, "--trials 1 leaves nothing to choose between: use at least 2"),
        ((), (), 4, "a sweep needs the methods to tune: name them with --methods"),
    ],
)
def test_what_is_no_sweep_is_refused(
    sets: tuple[str, ...], methods: tuple[str, ...], trials: int | None, sentence: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        planned(*sets, methods=methods, trials=trials)
    assert sentence in str(refused.value)


def test_a_setting_with_an_option_is_given_once() -> None:
    with pytest.raises(BadRequest, match=r"^lr is given by --lr and by --set: leave one out$"):
        planned("lr=0.1,0.2", lr=0.1)


def test_a_sweep_without_held_out_images_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"^a sweep chooses by held-out training images, never by the test set"):
        plan_sweep(Request(["resnet56:resnet20"], ["kd"], [1]), 4)


def test_a_heat_map_needs_a_grid_of_two_settings() -> None:
    planned("beta=1,2", "temperature=2,4").check_two_settings()
    for sweep in (planned("beta=1,2"), planned(methods=("kd",), trials=3)):
        with pytest.raises(BadRequest, match="needs a grid of two settings"):
            sweep.check_two_settings()


def test_settings_that_a_command_needs() -> None:
    settings = (("beta", "8"), ("temperature", "2"), ("lr", "0.05"))
    changed = {"temperature"}
    assert necessary(settings, lambda given: {k: v for k, v in given if k in changed}) == (("temperature", "2"),)


def test_a_grid_may_have_the_value_that_is_there() -> None:
    request = Request(["resnet56:resnet20"], ["kd"], [1], data=DataRequest(validation=100))
    changed = replace(request, changes=Changes(overrides=["kd_temperature=2,4"]))
    for trial in plan_sweep(changed, None).trials:
        assert resolve(trial.request(changed, ()), lambda network, data: MissingTeacher(network, data.mean, data.std))
