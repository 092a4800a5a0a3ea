import json
import re
from pathlib import Path

import pytest

from kdtable import papers
from kdtable.data.spec import DataSpec
from kdtable.planning.request import Request
from kdtable.planning.resolve import resolve
from kdtable.planning.teacher_refs import FileTeacher
from tests.cli.command import Call, Done, assert_refused

#: Each list, the field that names its rows, and some of those names.
LISTS = {
    "pairs": ("pair", {"resnet56:resnet20", "vgg13:MobileNetV2"}),
    "methods": ("row", {"vanilla", "kd", "at", "crd", "crd+kd", "dih", "takd", "heads"}),
    "papers": ("paper", {"crd", "dih"}),
    "models": ("network", {"resnet8", "resnet56_a", "wrn_40_2", "ShuffleV2", "NETWORK+heads", "NETWORK+tofd"}),
    "datasets": (
        "data set",
        {"cifar10", "cifar100", "tiny-imagenet", "digits", "digits-few", "npz:PATH", "folder:PATH"},
    ),
    "tables": ("table", {"crd-1", "crd-2", "dih-cifar10", "dih-cifar100", "dih-tiny"}),
}


@pytest.mark.parametrize("what", LISTS)
def test_a_list(what: str, call: Call) -> None:
    field, names = LISTS[what]
    done = call("list", what, "--format", "json")
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)
    assert names <= {row[field] for row in rows}
    shown = call("list", what)
    assert shown == Done(0, shown.out, "")
    assert all(name in shown.out for name in names)
    assert "…" not in shown.out


def test_a_table_is_listed_with_its_own_data(call: Call) -> None:
    rows = json.loads(call("list", "pairs", "--format", "json").out)
    data = {row["table"]: row["data"] for row in rows}
    assert (data["crd-1"], data["dih-tiny"], data["cd-imagenet"], data["mgd-cub200"]) == (
        "cifar100",
        "tiny-imagenet",
        "imagenet",
        "cub200",
    )
    assert {row["student lr"] for row in rows if row["table"] == "mgd-cub200"} == {0.01}


def test_lists_of_one_paper_and_data_set(call: Call) -> None:
    tables = json.loads(call("list", "tables", "--paper", "cd", "--data", "cifar100", "--format", "json").out)
    assert [row["table"] for row in tables] == ["cd-cifar100"]
    pairs = json.loads(call("list", "pairs", "--data", "cub200:any/folder", "--format", "json").out)
    assert {row["table"] for row in pairs} == {"mgd-cub200"}
    assert_refused(call("list", "tables", "--paper", "he2015"), "no tables", "--paper")
    assert_refused(call("list", "models", "--paper", "crd"), "--paper", "leave it out")
    assert_refused(call("list", "methods", "--data", "cifra10"), "unknown data set 'cifra10'", "cifar10")


def of(found: list[dict[str, object]], row: str, data: str) -> dict[str, object]:
    (only,) = [one for one in found if (one["row"], one["data"]) == (row, data)]
    return only


def test_a_row_is_listed_with_what_is_its_own(call: Call) -> None:
    dih = json.loads(call("list", "methods", "--paper", "dih", "--format", "json").out)
    tofd = of(dih, "tofd", "cifar100")
    assert (tofd["taught by row"], tofd["own recipe"]) == ("tofd-teacher", {"batch_size": 128, "nesterov": False})
    assert tofd["trains"] == "STUDENT+tofd"
    assert of(dih, "heads", "cifar100")["starts from"] == "the teacher's weights"
    assert [of(dih, "takd", data)["assistant"] for data in ("cifar10", "cifar100", "tiny-imagenet")] == [
        "resnet14",
        "resnet20",
        None,
    ]
    crd = json.loads(call("list", "methods", "--paper", "crd", "--format", "json").out)
    assert (of(crd, "kd", "cifar100")["taught by row"], of(crd, "kd", "cifar100")["own recipe"]) == (None, {})
    (photographs,) = {
        row["recipe"]["crop_padding"]
        for row in json.loads(call("list", "methods", "--paper", "crd", "--data", "imagenet", "--format", "json").out)
    }
    assert photographs == 0  # they are cropped as they are


#: Papers, rows and pairs with weights, stages, schedules, hyper-parameters or a recipe that are not the usual ones.
RUNS = [
    ("reviewkd", "reviewkd", "resnet56:resnet20"),
    ("cd", "cd+gkd+edt", "resnet56:resnet20"),
    ("crd", "ft", "wrn_40_2:wrn_16_2"),
    ("dih", "crd", "resnet56:resnet20"),
]


@pytest.mark.parametrize(("paper", "name", "pair"), RUNS)
def test_what_is_listed_is_what_is_run(paper: str, name: str, pair: str, call: Call) -> None:
    def find(network: str, data: DataSpec) -> FileTeacher:
        return FileTeacher(network, data.mean, data.std, "0" * 64, Path())

    run = resolve(Request(pairs=[pair], methods=[name], seeds=[1], paper=paper), find)[0].run
    row = of(json.loads(call("list", "methods", "--paper", paper, "--format", "json").out), name, "cifar100")
    own = {"reviewkd": {"reviewkd": 0.6}}.get(name, {})  # of this pair, not of all
    assert row["weights"] | own == run.objective.terms
    assert row["weights by pair"].get(pair, {}) == own
    assert row["schedules"] == {term: schedule.identity() for term, schedule in run.objective.schedules.items()}
    wide = {"ft": {"init_lr": 0.01}}.get(name, {})
    assert row["hyper-parameters"] | wide == run.objective.named_params
    assert row["hyper-parameters by student"].get("wrn_*", {}) == wide
    assert row["earlier stages (epochs)"] == run.objective.stage_epochs
    assert row["recipe"] == run.recipe.full_identity()


def test_every_row_that_a_table_trains_is_listed(call: Call) -> None:
    rows = json.loads(call("list", "methods", "--format", "json").out)
    listed = {(row["paper"], row["data"], row["row"]) for row in rows}
    trained = {
        (paper.name, table.data, row)
        for paper in map(papers.load, papers.names())
        for table in paper.tables.values()
        for row in table.trained
    }
    assert trained <= listed
    assert len(rows) == len(listed)


#: What a reader must find of each paper, each in one line where it is not broken.
SAID = {
    "crd": (
        "On cifar100: epochs=240, batch_size=64, lr=0.05, milestones=150,180,210",
        "students MobileNetV2, ShuffleV1, ShuffleV2: lr=0.01",
        "students resnet*, wrn_*: init_lr=0.01",
        "stage before: init, 30 epochs",
        "X+kd: 0.1 ce + 0.9 kd + X's own terms",
    ),
    "dih": (
        "starts from: the teacher's weights",
        "taught by: row heads",
        "(resnet14 if it is",
        "reading paper: lr_fac",
    ),
    "cd": (
        "1 ce + 0.1 gkd + 6 cd",
        "weight of ce: off up to epoch 60",
        "weight of cd: times 0.9 at the start of epochs 60, 160",
        "On imagenet: epochs=100, batch_size=256",
        "1 ce + 1 gkd + 6 cd",
        "weight of cd: times 0.9 at the start of epochs 30, 60, 90",
        "of another paper",
    ),
    "mgd": (
        "recipe: epochs=100, milestones=30,60,90",
        "starts from: ImageNet weights",
        "students mgd_shufflenetv2: stud",
    ),
    "reviewkd": (
        "0.6 reviewkd for resnet56:resnet20",
        "5 reviewkd for resnet32x4:resnet8x4, wrn_40_2:*",
        "weight of reviewkd: rises from 0 in epoch 1 to its full value in epoch 21",
        "students mobilenetv1: mid=256, student_taps=preacts",
        "8 reviewkd for tv_resnet50:mobilenetv1",
    ),
    "torchdistill": ("stage before: init, 1 epoch", "recipe: epochs=30, batch_size=513, lr=0.002, milestones=none"),
}


@pytest.mark.parametrize("paper", SAID)
def test_methods_in_words(paper: str, call: Call) -> None:
    shown = call("list", "methods", "--paper", paper)
    assert shown == Done(0, shown.out, "")
    missing = [words for words in SAID[paper] if words not in shown.out]
    assert not missing, shown.out


def test_combinations_with_kd_are_as_listed(call: Call) -> None:
    crd = papers.load("crd")
    shown = " ".join(call("list", "methods", "--paper", "crd").out.split())
    assert "X+kd: 0.1 ce + 0.9 kd + X's own terms, and the settings of both, for every X that has a teacher" in shown
    for name in ("at", "ft", "nst"):
        own = {term: weight for term, weight in crd.rows[name].terms.items() if term != "ce"}
        assert crd.row(f"{name}+kd").terms == {"ce": 0.1, "kd": 0.9, **own}


@pytest.mark.parametrize("what", ["methods", "tables"])
def test_a_list_fits_a_terminal(what: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "100", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in call("list", what).out.splitlines()]
    assert max(map(len, lines)) == 100
    assert not [line for line in lines if "…" in line]
    assert any(line.startswith(("│ fitnet-2stage │", "│ cd-imagenet-history ")) for line in lines)
