"""Which files a run's numbers depend on, and where they differ from those that made it."""

from pathlib import Path
from typing import Any

import pytest

import kdtable
from kdtable.methods import METHODS
from kdtable.models.names import KINDS, NETWORKS
from kdtable.planning.code import UNKNOWN, changed_files, made_otherwise, network_code, other_code, used_files
from kdtable.provenance import source_files, source_hash
from kdtable.store.schema import origin_row

#: Nothing in these decides what a run computes, or its identity says so.
OTHERS = ("cli", "report", "store", "execution", "planning", "papers", "export", "doctor", "teachers", "files")


def identity(method: str = "kd", student: str = "resnet8", teacher: str | None = "resnet14", **more: Any) -> Any:
    found = {"student": {"network": student}, "teacher": teacher and {"network": teacher}}
    terms = [["ce", 0.1], ["kd", 0.9]] if "kd" in method else [["ce", 1.0]]
    return {**found, "method": {"name": method}, "terms": terms, **more}


def names(*args: Any, **more: Any) -> set[str]:
    return {file.removeprefix("kdtable/") for file in used_files(identity(*args, **more))}


def test_a_run_uses_its_method_its_networks_and_the_step() -> None:
    used = names("crd", "wrn_16_1", "vgg13")
    assert used >= {"methods/crd.py", "methods/base.py", "methods/parts/negatives.py", "models/wrn.py", "models/vgg.py"}
    assert used >= {"training/step.py", "tasks/classification.py", "data/stream.py", "recipes/schedule.py"}
    assert not used & {"methods/kd.py", "methods/soft_targets.py", "models/resnet.py", "training/cuda_graphs.py"}


def test_registries_and_what_plans_stores_and_shows_is_not_used() -> None:
    every = {file for method in METHODS for file in names(method, "resnet20+tofd", "resnet56+heads")}
    assert not [file for file in every if file.endswith(("__init__.py", "models/names.py"))]
    assert not [file for file in every if file.startswith(tuple(f"{room}/" for room in OTHERS))]


def test_only_runs_with_soft_targets_use_their_file() -> None:
    assert "methods/soft_targets.py" in names("kd")
    assert "methods/soft_targets.py" in names("dkd", terms=[["dkd", 1.0]]), "its own file imports it"
    assert "methods/soft_targets.py" not in names("vanilla", teacher=None)
    assert "methods/soft_targets.py" not in names("at")


@pytest.mark.parametrize("name", [*METHODS.targets])
def test_every_method_has_a_file(name: str) -> None:
    module = METHODS.targets[name].partition(":")[0]
    assert f"{module.replace('.', '/')}.py" in used_files(identity(name))


def test_every_network_has_files_and_its_classifiers_too() -> None:
    for name, entry in NETWORKS.items():
        assert f"{entry.module.removeprefix('kdtable.').replace('.', '/')}.py" in names(student=name)
    for kind in KINDS:
        assert f"{KINDS[kind].module.removeprefix('kdtable.').replace('.', '/')}.py" in names(
            student=f"resnet20+{kind}"
        )
    assert "models/vgg.py" in names("vanilla", teacher=None, start={"network": "vgg8"})


def test_a_stranger_s_method_and_network_have_no_files_here() -> None:
    strange = {file.removeprefix("kdtable/") for file in used_files(identity("of-a-plug-in", "its-network", None))}
    assert strange
    assert not [file for file in strange if file.startswith("models/resnet")]


def test_the_source_hash_is_the_id_of_the_list_of_files() -> None:
    assert origin_row(source_files())["id"] == source_hash()
    assert (Path(kdtable.__file__).parents[1] / "kdtable" / "methods" / "kd.py").exists()
    assert {"kdtable/methods/kd.py", "kdtable/papers/crd.toml", "kdtable/__init__.py"} <= source_files().keys()


def test_what_differs_is_named() -> None:
    now = source_files()
    known = {
        "kd": {**now, "kdtable/methods/kd.py": "0"},
        "cli": {**now, "kdtable/cli/run.py": "0", "kdtable/methods/__init__.py": "0", "kdtable/methods/at.py": "0"},
        "new": {file: text for file, text in now.items() if file != "kdtable/models/resnet.py"},
    }
    assert changed_files(identity(), [source_hash()], {}) == set()
    assert changed_files(identity(), ["kd"], known) == {"kdtable/methods/kd.py"}
    assert changed_files(identity("at"), ["kd"], known) == set()
    assert changed_files(identity(), ["cli"], known) == set(), "no file that it uses differs"
    assert changed_files(identity(), ["new"], known) == {"kdtable/models/resnet.py"}
    assert changed_files(identity(), [source_hash(), "kd"], known) == {"kdtable/methods/kd.py"}, "a part is enough"
    assert changed_files(identity(), ["older"], known) == {UNKNOWN}


def test_the_code_of_a_network() -> None:
    assert network_code("resnet8") == network_code("resnet56") != network_code("vgg8")
    assert network_code("resnet8") != network_code("resnet8+heads")


def test_words() -> None:
    assert made_otherwise(1, ["kd"], ["kdtable/methods/kd.py"]) == (
        "1 stored run of kd was made by another kdtable/methods/kd.py"
    )
    assert made_otherwise(1200, ["kd", "at", "kd"], ["b.py", "a.py", UNKNOWN], unfinished=2) == (
        "1,200 stored runs of kd, at (2 of them unfinished) were made by another a.py, b.py"
    )
    assert other_code(["e", "d", "c", "b", "a"]) == "another a, b, c and 2 more"
    assert other_code([UNKNOWN]) == "code whose files are not recorded"
