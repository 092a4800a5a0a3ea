"""Pairs with several teachers: what is planned, and why the other rows are not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdtable import papers
from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.errors import BadRequest
from kdtable.execution.assignment import Assignment
from kdtable.execution.estimate import kind_of
from kdtable.execution.memory import AHEAD, TEACHER_COPIES, footprint, needed
from kdtable.methods import METHODS
from kdtable.papers import Pair
from kdtable.planning.cohorts import PlannedRun, cohorts, missing, why_uncached
from kdtable.planning.given import GivenWeights
from kdtable.planning.request import Request
from kdtable.planning.requested import plan_request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.selection import parse_pairs
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher, SeveralTeachers
from kdtable.planning.teachers import changed_teachers, other_data, teacher_finder, trained_elsewhere
from kdtable.store.records import single_teachers
from tests.asking import asked
from tests.cli.command import write_teacher

DIGITS = BUILT_IN["digits"]
PAIR = "resnet56+resnet110:resnet20"
#: Rows of several teachers, and those without a teacher.
TAUGHT, ALONE = ["kd", "dkd", "dist", "ttm", "wsld", "dot"], ["vanilla"]


def teacher(name: str, data: DataSpec = DIGITS) -> FileTeacher:
    return FileTeacher(name, data.mean, data.std, name.ljust(64, "0"), Path(name))


def planned(pair: str = PAIR, row: str = "kd", **changes: object) -> PlannedRun:
    found, *_ = resolve(asked(Request([pair], [row], [1]), data="digits", **changes), teacher)
    return found


def run(pair: str = PAIR, row: str = "kd", **changes: object) -> Run:
    return planned(pair, row, **changes).run


def test_the_pair_and_its_teachers() -> None:
    found = planned("res110 + res56:res20")
    assert found.pair == Pair("resnet56+resnet110", "resnet20")
    assert found.run.teacher == SeveralTeachers((teacher("resnet56"), teacher("resnet110")))
    assert found.run.teacher.network == "resnet56+resnet110"
    assert found.not_applicable is None


def test_their_order_is_no_part_of_the_identity_and_their_set_is() -> None:
    pairs = [PAIR, "resnet110+resnet56:resnet20", "resnet56:resnet20", "resnet110:resnet20", "resnet56+vgg13:resnet20"]
    same, turned, *others = (run(pair).id for pair in pairs)
    assert same == turned
    assert len({same, *others}) == 4
    assert len(parse_pairs(pairs, papers.load("crd"))) == 4


def test_the_identity_has_each_teachers_own() -> None:
    identity = run().protocol["teacher"]
    assert identity == {
        "network": "resnet56+resnet110",
        "teachers": [teacher(name).identity() for name in ("resnet56", "resnet110")],
    }
    assert single_teachers(identity) == identity["teachers"]
    one = run("resnet56:resnet20").protocol["teacher"]
    assert single_teachers(one) == [one]
    assert single_teachers(None) == []


def test_vanilla_is_the_run_of_any_pair() -> None:
    assert run(row="vanilla").id == run("resnet56:resnet20", "vanilla").id


@pytest.mark.parametrize("row", [*TAUGHT, *ALONE])
def test_rows_that_can_be_taught(row: str) -> None:
    assert planned(row=row).not_applicable is None


@pytest.mark.parametrize("row", [name for name in METHODS if name not in (*TAUGHT, *ALONE)])
def test_all_others_say_what_they_need_of_one_teacher(row: str) -> None:
    """Or they need none: then they are the runs of any other pair."""
    paper = next(p.name for p in map(papers.load, papers.names()) if row in p.rows and p.task == "classification")
    found = planned(row=row, paper=paper)
    if found.run.teacher is None and found.not_applicable is None:
        assert found.run.id == planned("resnet56:resnet20", row, paper=paper).run.id
        return
    assert found.not_applicable is not None
    assert found.not_applicable.startswith(f"{row} ")
    assert found.not_applicable.endswith(" of one teacher")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("at", "at compares the maps of one teacher"),
        ("at+kd", "at+kd compares the maps of one teacher"),
        ("rkd", "rkd compares the embedding of one teacher"),
        ("ctkd", "ctkd compares the logits of one teacher"),
        ("wttm", "wttm compares the logits of one teacher"),
        ("kd+ls", "kd+ls standardises the logits of one teacher"),
        ("dkd+ls", "dkd+ls standardises the logits of one teacher"),
        ("takd", "takd learns from what kd makes of one teacher"),
    ],
)
def test_reasons(row: str, reason: str) -> None:
    assert planned(row=row).not_applicable == reason


def test_standardisation_by_hand_is_refused_too() -> None:
    found = planned(overrides=["kd_standardise=true"])
    assert found.not_applicable == "kd standardises the logits of one teacher"


def test_runs_of_the_same_teachers_share_a_cohort() -> None:
    pairs = [PAIR, "resnet110+resnet56:resnet8", "resnet56:resnet20"]
    request = asked(Request(pairs, ["vanilla", "kd", "dkd", "at"], [1]), data="digits")
    found = cohorts(missing(resolve(request, teacher), {}))
    assert sorted((cohort.teacher.network, len(cohort.runs)) for cohort in found if cohort.teacher) == [
        ("resnet56", 3),
        ("resnet56+resnet110", 6),
    ]


def test_no_cache_of_several_teachers() -> None:
    found = run(teacher_cache="fp32")
    assert found.id == run().id
    assert why_uncached(found) == "it has several teachers"


def test_all_missing_teachers_are_named(tmp_path: Path) -> None:
    find = teacher_finder(tmp_path, GivenWeights())
    with pytest.raises(BadRequest) as refused:
        resolve(asked(Request([PAIR], ["kd"], [1]), data="digits"), find)
    assert "there is no teacher resnet56 for digits" in str(refused.value)
    assert "there is no teacher resnet110 for digits" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_dry_run_plans_with_those_that_are_missing(tmp_path: Path) -> None:
    write_teacher(tmp_path / "a.pt", "resnet8", 10)
    request = asked(Request(["resnet8+resnet14:resnet8"], ["kd"], [1]), data="digits")
    given = GivenWeights({"resnet8": tmp_path / "a.pt"})
    (found,) = plan_request(request, tmp_path, given, allow_missing=True)
    assert isinstance(found.run.teacher, SeveralTeachers)
    assert [type(ref) for ref in found.run.teacher.teachers] == [FileTeacher, MissingTeacher]
    assert found.run.teacher.sha256 is None


def test_a_file_of_other_classes_is_refused(tmp_path: Path) -> None:
    write_teacher(tmp_path / "a.pt", "resnet8", 10)
    write_teacher(tmp_path / "b.pt", "resnet14", 7)
    request = asked(Request(["resnet8+resnet14:resnet8"], ["kd"], [1]), data="digits")
    given = GivenWeights({"resnet8": tmp_path / "a.pt", "resnet14": tmp_path / "b.pt"})
    with pytest.raises(BadRequest, match=r"b\.pt has 7 classes, the data set has 10$"):
        plan_request(request, tmp_path, given)


def test_a_file_for_neither_of_them_is_refused(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("resnet8", "resnet14", "resnet20")}
    for name, path in files.items():
        write_teacher(path, name, 10)
    request = asked(Request(["resnet8+resnet14:resnet8"], ["kd"], [1]), data="digits")
    with pytest.raises(BadRequest, match="--teacher resnet20 is the teacher of no pair"):
        plan_request(request, tmp_path, GivenWeights(files))


def test_paths_on_another_machine() -> None:
    found = planned()
    assignment = Assignment((found,), Path("results"), Path("data"), None, "last").moved(Path("/far").joinpath)
    (moved,) = assignment.planned_runs
    assert isinstance(moved.run.teacher, SeveralTeachers)
    assert [ref.path for ref in moved.run.teacher.teachers] == [Path("/far/resnet56"), Path("/far/resnet110")]  # type: ignore[union-attr]
    assert moved.run.id == found.run.id


def test_the_memory_estimate_counts_each_teacher() -> None:
    sizes = [footprint(name, 10, 32, 64) for name in ("resnet56", "resnet110")]
    teachers = sum(TEACHER_COPIES * one.weights + AHEAD * one.outputs for one in sizes)
    cpu = torch.device("cpu")
    assert needed([run()], cpu) - needed([run(row="vanilla")], cpu) == teachers


def test_the_time_of_a_step_is_another_kind_with_other_teachers() -> None:
    assert kind_of(run()) != kind_of(run("resnet56:resnet20"))


def test_notes_on_files_that_changed_or_are_of_other_data() -> None:
    found = run()
    assert isinstance(found.teacher, SeveralTeachers)
    (note,) = changed_teachers([found], {found.id: "f" * 64})
    assert note.startswith("resnet56 + resnet110 is not the teacher of 1 run of the store")
    assert changed_teachers([found], {found.id: found.teacher.sha256}) == []
    elsewhere = SeveralTeachers((teacher("resnet56"), replace(teacher("resnet110"), trained_on="own-1")))
    assert other_data(elsewhere, DIGITS) == "own-1"
    assert trained_elsewhere([(elsewhere, DIGITS)]) == [
        "resnet110 was trained on own-1, not on digits: its classes may be others"
    ]
