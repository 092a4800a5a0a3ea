import json

import pytest

from tests.cli.command import Call, Done

#: Each list, the field that names its rows, and some of those names.
LISTS = {
    "pairs": ("pair", {"resnet56:resnet20", "vgg13:MobileNetV2"}),
    "methods": ("row", {"vanilla", "kd", "at", "crd", "crd+kd", "dih", "takd", "heads"}),
    "papers": ("paper", {"crd", "dih"}),
    "models": ("network", {"resnet8", "resnet56_a", "wrn_40_2", "ShuffleV2", "NETWORK+heads", "NETWORK+tofd"}),
    "datasets": ("data set", {"cifar10", "cifar100", "tiny-imagenet", "digits", "npz:PATH", "folder:PATH"}),
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


def test_a_row_is_listed_with_what_is_its_own(call: Call) -> None:
    rows = {(row["paper"], row["row"]): row for row in json.loads(call("list", "methods", "--format", "json").out)}
    tofd = rows["dih", "tofd"]
    assert (tofd["taught by row"], tofd["own recipe"]) == ("tofd-teacher", {"batch_size": 128, "nesterov": False})
    assert (rows["crd", "kd"]["taught by row"], rows["crd", "kd"]["own recipe"]) == (None, {})
