"""From a request to cells, and from missing runs to cohorts."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtable import papers, plan
from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.errors import BadRequest
from kdtable.methods import get
from kdtable.papers import Pair
from kdtable.plan import Cell, Request, cohorts, make, parse_pairs, parse_seeds, resolve
from kdtable.recipe import Recipe
from kdtable.runs import Run, TeacherRef

CRD = papers.load("crd")
RECIPE = Recipe(epochs=4, batch_size=64, lr=0.05, milestones=())
DIGITS, CIFAR = BUILT_IN["digits"], BUILT_IN["cifar10"]


def teacher(name: str, data: DataSpec = DIGITS) -> TeacherRef:
    return TeacherRef(name, data.mean, data.std, name.ljust(64, "0"), Path(name))


METHODS = [get(name) for name in ("vanilla", "kd")]  # imported here, not while examples are drawn
TEACHERS = (None, teacher("resnet56"), teacher("vgg13"))


@st.composite
def requested(draw: st.DrawFn) -> Run:
    taught = draw(st.sampled_from(TEACHERS))
    recipe = replace(
        RECIPE,
        batch_size=draw(st.sampled_from((32, 64))),
        lr=draw(st.sampled_from((0.05, 0.01))),
        crop_padding=draw(st.sampled_from((2, 4))),
    )
    return Run(
        "kd" if taught else "vanilla",
        draw(st.sampled_from(("resnet8", "resnet20"))),
        draw(st.sampled_from((DIGITS, CIFAR))),
        recipe,
        {"ce": 0.1, "kd": 0.9} if taught else {"ce": 1.0},
        {"kd_temperature": 4.0} if taught else {},
        draw(st.integers(1, 3)),
        draw(st.sampled_from(("fp32", "bf16"))),
        taught,
    )


RUNS = st.lists(requested(), max_size=25, unique_by=lambda run: run.id)


def stream(run: Run) -> tuple[object, ...]:
    return (run.seed, run.data.key, run.recipe.batch_size, run.recipe.crop_padding, run.precision)


@given(RUNS)
def test_cohorts_hold_every_run_once(runs: list[Run]) -> None:
    planned = [run.id for cohort in cohorts(runs) for run in cohort.runs]
    assert sorted(planned) == sorted(run.id for run in runs)


@given(RUNS)
def test_a_cohort_shares_stream_and_teacher(runs: list[Run]) -> None:
    for cohort in cohorts(runs):
        assert len({stream(run) for run in cohort.runs}) == 1
        assert {run.teacher for run in cohort.runs} - {None} <= {cohort.teacher}
        if cohort.teacher is not None:
            assert any(run.teacher for run in cohort.runs)


@given(RUNS)
def test_runs_without_a_teacher_join_a_taught_cohort(runs: list[Run]) -> None:
    taught = {stream(run) for run in runs if run.teacher}
    alone = [cohort for cohort in cohorts(runs) if cohort.teacher is None]
    assert all(stream(cohort.runs[0]) not in taught for cohort in alone)
    # No two cohorts could have been one.
    keys = [(stream(cohort.runs[0]), cohort.teacher) for cohort in cohorts(runs)]
    assert len(set(keys)) == len(keys)


@given(RUNS)
def test_cohorts_come_seed_by_seed(runs: list[Run]) -> None:
    seeds = [cohort.runs[0].seed for cohort in cohorts(runs)]
    assert seeds == sorted(seeds)


@given(RUNS, st.data())
def test_what_is_done_is_left_out(runs: list[Run], data: st.DataObject) -> None:
    state = st.sampled_from(("done", "failed", "planned", "running", "missing"))
    statuses = {run.id: data.draw(state) for run in runs}
    cells = [Cell(Pair("resnet56", run.student), run.row, run) for run in runs]
    planned = make(cells, statuses)
    ids = sorted(run.id for cohort in planned.cohorts for run in cohort.runs)
    assert ids == sorted(run_id for run_id, status in statuses.items() if status != "done")
    assert planned.cells == tuple(cells)
    assert planned.done == list(statuses.values()).count("done")


def test_a_run_of_two_pairs_is_trained_once() -> None:
    cells = resolve(
        Request(["resnet56:resnet20", "resnet110:resnet20"], ["vanilla", "kd"], [1], data="digits"), teacher
    )
    planned = make(cells, {})
    assert len(cells) == 4
    assert len(planned.runs) == 3
    assert sum(len(cohort.runs) for cohort in planned.cohorts) == 3


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", [1, 2, 3]),
        ("1", [1]),
        ("7,8,9", [7, 8, 9]),
        ("7,", [7]),
        ("0,", [0]),
        (" 4 , 2 ", [4, 2]),
        ("5,5,1", [5, 1]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", " ", ",", "0", "-1", "1,-2", "a", "1.5", "1,b", "1;2"])
def test_seeds_that_cannot_be_used(text: str) -> None:
    with pytest.raises(BadRequest, match="--seeds"):
        parse_seeds(text)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_a_list_of_seeds_is_kept_without_repetitions(seeds: list[int]) -> None:
    assert parse_seeds(",".join(map(str, seeds)) + ",") == list(dict.fromkeys(seeds))


@given(st.integers(1, 300))
def test_a_count_of_seeds(count: int) -> None:
    assert parse_seeds(str(count)) == list(range(1, count + 1))


@given(st.text(max_size=6))
def test_any_text_gives_seeds_or_a_refusal(text: str) -> None:
    try:
        seeds = parse_seeds(text if not text.strip().isdecimal() else text[:2])
    except BadRequest:
        return
    assert seeds
    assert min(seeds) >= 0


def test_all_pairs() -> None:
    assert len(parse_pairs(["all"], CRD)) == 13


@pytest.mark.parametrize(("table", "count"), [("crd-1", 7), ("crd-2", 6)])
def test_pairs_of_a_table(table: str, count: int) -> None:
    assert parse_pairs([table], CRD) == list(CRD.tables[table].pairs)
    assert len(CRD.tables[table].pairs) == count


def test_pairs_in_any_spelling_and_once() -> None:
    texts = ["resnet56:resnet20", "res56:ResNet-20", "crd-1", "ResNet50:shufflenetv1"]
    pairs = parse_pairs(texts, CRD)
    assert pairs[0] == Pair("resnet56", "resnet20")
    assert pairs[-1] == Pair("cifar_resnet50", "ShuffleV1")
    assert len(pairs) == len(set(pairs)) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crd-3", "unknown pair 'crd-3'; did you mean crd-[12]"),
        ("resnet56-resnet20", "unknown pair"),
        ("resnet57:resnet20", "unknown network 'resnet57'"),
        ("resnet56:", "unknown network"),
        ("resnet56:shufflenet", "ambiguous"),
    ],
)
def test_pairs_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_pairs([text], CRD)


def test_no_pair_at_all() -> None:
    with pytest.raises(BadRequest, match="at least one pair"):
        parse_pairs([], CRD)


def request(**changes: object) -> Request:
    return replace(Request(["resnet56:resnet20"], ["kd"], [1], data="digits"), **changes)


def only(asked: Request) -> Run:
    (cell,) = resolve(asked, teacher)
    return cell.run


def test_a_plain_request_has_the_papers_settings() -> None:
    run = only(request())
    assert run.recipe == CRD.recipe
    assert run.terms == {"ce": 0.1, "kd": 0.9}
    assert run.params == {"kd_temperature": 4.0}
    assert run.teacher == teacher("resnet56")
    assert (run.precision, run.data) == ("fp32", DIGITS)


def test_options_and_settings_change_the_run() -> None:
    run = only(
        request(epochs=24, batch_size=32, lr=0.2, settings=["weight.kd=0.5", "kd_temperature=2", "momentum=0.8"])
    )
    assert run.recipe == replace(CRD.recipe, epochs=24, milestones=(15, 18, 21), batch_size=32, lr=0.2, momentum=0.8)
    assert run.terms == {"ce": 0.1, "kd": 0.5}
    assert run.params == {"kd_temperature": 2.0}


def test_a_mobile_student_keeps_its_rate_unless_one_is_asked_for() -> None:
    assert only(request(pairs=["vgg13:MobileNetV2"])).recipe.lr == 0.01
    assert only(request(pairs=["vgg13:MobileNetV2"], lr=0.3)).recipe.lr == 0.3


def test_vanilla_asks_for_no_teacher() -> None:
    run = plan.resolve(request(methods=["vanilla"]), lambda *_: pytest.fail("a teacher was looked for"))[0].run
    assert run.teacher is None


def test_a_teacher_whose_term_has_weight_zero_is_still_used() -> None:
    assert only(request(settings=["weight.kd=0"])).teacher is not None


def test_cells_are_pairs_by_methods_by_seeds() -> None:
    cells = resolve(request(pairs=["crd-1"], methods=["kd", "at", "kd"], seeds=[1, 2, 3]), teacher)
    assert len(cells) == 7 * 2 * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": []}, "at least one method"),
        ({"seeds": []}, "one seed"),
        ({"methods": ["kdd"]}, "unknown method"),
        ({"paper": "dihh"}, "unknown paper"),
        ({"data": "cifar11"}, "unknown data set"),
        ({"epochs": 0}, "--epochs 0"),
        ({"lr": 0.0}, "learning rate"),
        ({"lr": -0.1}, "learning rate"),
        ({"lr": float("nan")}, "learning rate"),
        ({"lr": float("inf")}, "learning rate"),
        ({"batch_size": 0}, "batch of 0"),
        ({"batch_size": 5000}, "fewer than one batch"),
        ({"settings": ["tau=0.1"]}, "unknown setting 'tau'"),
        ({"settings": ["kd_temperature=0"]}, "kd_temperature must be positive"),
        ({"settings": ["crop_padding=-1"]}, "crop_padding"),
        ({"settings": ["weight_decay=-1"]}, "weight_decay"),
        ({"methods": ["crd"], "settings": ["mode=other"]}, "mode is one of exact, relax"),
    ],
)
def test_requests_that_cannot_be_carried_out(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        resolve(request(**changes), teacher)
