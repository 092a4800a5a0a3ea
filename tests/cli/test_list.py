import json

import pytest

from tests.cli.command import Call, Done

#: Each list, the field that names its rows, and some of those names.
LISTS = {
    "pairs": ("pair", {"resnet56:resnet20", "vgg13:MobileNetV2"}),
    "methods": ("row", {"vanilla", "kd", "at", "crd", "crd+kd"}),
    "papers": ("paper", {"crd"}),
    "models": ("network", {"resnet8", "resnet56_a", "wrn_40_2", "ShuffleV2"}),
    "datasets": ("data set", {"cifar10", "cifar100", "digits", "npz:PATH", "folder:PATH"}),
    "tables": ("table", {"crd-1", "crd-2"}),
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
