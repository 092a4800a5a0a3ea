"""Plug-ins from files: what they register, how they are read again, and which are refused."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from kdtable import data, methods, models, papers, plugins
from kdtable.errors import BadRequest
from kdtable.methods import METHODS
from kdtable.papers.loader import PAPERS
from tests.plugins.written import DATA, METHOD, NETWORK, PAPER, write


def test_a_method_is_a_guest_in_every_paper_with_its_own_row(tmp_path: Path) -> None:
    plugins.load([write(tmp_path / "near.py", METHOD)])
    assert methods.get("near").__name__ == "Near"
    for paper in map(papers.load, ("crd", "dih", "zoo")):
        row = paper.row("near")
        assert row.terms == {"ce": 1.0, "near": 2.0}
        assert row.schedules["near"].warmup == 20
        assert row.recipe == {}
    crd = papers.load("crd")
    assert crd.row("near+kd").terms == {"ce": 0.1, "kd": 0.9, "near": 2.0}
    assert crd.spelled("KD+Near") == "near+kd"


def test_the_row_of_a_file_beside(tmp_path: Path) -> None:
    text = METHOD.replace('"near", terms={"ce": 1.0, "near": 2.0}, schedules={"near": {"warmup": 20}}', '"near"')
    write(tmp_path / "near.toml", "[rows.near]\nterms = { ce = 0.5, near = 3.0 }\nparams = { scale = 2.0 }\n")
    plugins.load([write(tmp_path / "near.py", text)])
    row = papers.load("crd").row("near")
    assert (row.terms, row.params) == ({"ce": 0.5, "near": 3.0}, {"scale": 2.0})


def test_a_method_without_a_row_says_so_when_it_is_asked_for(tmp_path: Path) -> None:
    text = METHOD.replace('"near", terms={"ce": 1.0, "near": 2.0}, schedules={"near": {"warmup": 20}}', '"near"')
    plugins.load([write(tmp_path / "near.py", text)])
    with pytest.raises(BadRequest, match=r"method 'near' \(.*near\.py\) has no row: give its weights, terms="):
        papers.load("crd").row("near")


def test_networks_by_several_names(tmp_path: Path) -> None:
    plugins.load([write(tmp_path / "nets.py", NETWORK)])
    assert models.canonical("SMALL") == "small"
    outputs = models.build("smaller", 3)(torch.zeros(1, 3, 16, 16))
    assert (outputs.embedding.shape, outputs.logits.shape) == ((1, 4), (1, 3))
    assert models.build("small+heads", 3)(torch.zeros(1, 3, 32, 32)).branches


def test_a_data_set_is_a_function_that_returns_arrays(tmp_path: Path) -> None:
    plugins.load([write(tmp_path / "sets.py", DATA)])
    spec = data.resolve("STRIPES")
    assert (spec.name, spec.num_classes, spec.image_size, spec.flip) == ("stripes", 2, 8, False)
    assert (spec.train_count, spec.test_count) == (40, 10)
    images = data.load(spec, tmp_path)
    assert images.train_images.shape == (40, 3, 8, 8)
    assert spec.identity()["sha256"] == data.resolve("stripes").sha256
    before = spec.key
    plugins.load([write(tmp_path / "sets.py", DATA.replace("default_rng(0)", "default_rng(1)"))])
    assert data.resolve("stripes").key != before


@pytest.mark.parametrize("as_file", [True, False], ids=["TOML", "named by Python"])
def test_a_paper(as_file: bool, tmp_path: Path) -> None:
    toml = write(tmp_path / "stripes.toml", PAPER)
    python = write(tmp_path / "all.py", 'from kdtable import plugins\nplugins.paper("stripes.toml")\n')
    plugins.load([toml if as_file else python])
    paper, table = papers.find_table("stripes-1")
    assert (paper.name, table.published["kd"]) == ("stripes", (81.5,))


def test_a_file_that_was_edited_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "near.py", METHOD)
    plugins.load([file])
    before, first = methods.METHODS.source("near"), methods.get("near")
    plugins.load([file])
    assert methods.get("near") is first
    assert before == hashlib.sha256(METHOD.encode()).hexdigest()[:16]
    plugins.load([write(file, METHOD.replace("scale: float = 1.0", "scale: float = 2.0"))])
    assert methods.get("near").hyper().scale == 2.0
    assert methods.METHODS.source("near") != before
    assert len(plugins.loaded()) == 1


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "inside a function"])
def test_modules_beside_it_belong_to_its_source(inside: bool, tmp_path: Path) -> None:
    by_hand = "    from parts.weights import SCALE\n    return SCALE" if inside else "    return SCALE"
    top = "" if inside else "from parts.weights import SCALE\n"
    text = f"{top}{METHOD}\n\ndef scale():\n{by_hand}\n"
    file = write(tmp_path / "near.py", text)
    write(tmp_path / "parts" / "weights.py", "from .deeper import SCALE\n")
    write(tmp_path / "parts" / "deeper.py", "SCALE = 1\n")
    write(tmp_path / "parts" / "other.py", "never = 1\n")
    plugins.load([file])
    module, before = methods.get("near").__module__, methods.METHODS.source("near")
    assert vars(__import__("sys").modules[module])["scale"]() == 1
    write(tmp_path / "parts" / "other.py", "never = 2\n")
    plugins.load([file])
    assert methods.METHODS.source("near") == before
    write(tmp_path / "parts" / "deeper.py", "SCALE = 2\n")
    plugins.load([file])
    assert methods.METHODS.source("near") != before
    assert vars(__import__("sys").modules[methods.get("near").__module__])["scale"]() == 2
    assert not list(tmp_path.rglob("__pycache__"))


def test_two_files_of_one_name_in_two_folders(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "mine.py", METHOD)
    two = write(tmp_path / "b" / "mine.py", METHOD.replace('"near"', '"far"'))
    plugins.load([one, two])
    assert methods.get("near").__name__ == methods.get("far").__name__ == "Near"
    assert methods.get("near") is not methods.get("far")


def test_two_modules_of_one_name_beside_two_files_are_refused(tmp_path: Path) -> None:
    for folder, name in (("a", "near"), ("b", "far")):
        write(tmp_path / folder / "common_parts.py", f"NAME = '{name}'\n")
        text = METHOD.replace('"near"', "NAME").replace(
            "from kdtable import", "from common_parts import NAME\nfrom kdtable import", 1
        )
        write(tmp_path / folder / f"{name}.py", text)
    plugins.load([tmp_path / "a" / "near.py"])
    with pytest.raises(
        BadRequest, match=r"imports 'common_parts', which is .*a/common_parts\.py here, not .*: rename one"
    ):
        plugins.load([tmp_path / "b" / "far.py"])


def test_a_file_named_by_a_relative_path_or_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "near.py", METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    plugins.load(["near.py", "~/near.py", "./near.py"])
    assert [plugin.path for plugin in plugins.loaded()] == [(tmp_path / "near.py").resolve()]


DECORATED = '@plugins.method("near", terms={"ce": 1.0, "near": 2.0}, schedules={"near": {"warmup": 20}})'

#: What is wrong with a plug-in: how its text differs, and what the sentence says.
WRONG = {
    "raises": ('    term = "near"', "    term = 1 / 0", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
    "no Python": ("class Near", "class :", r"cannot be imported \(SyntaxError"),
    "ends": (METHOD, "raise SystemExit(3)", r"cannot be imported \(SystemExit: 3\)"),
    "misspelt": ("terms=", "term=", r"cannot be imported \(TypeError: .*unexpected keyword argument 'term'"),
    "nothing": (DECORATED, "", r"registers nothing: put @plugins\.method"),
    "taken": ('("near"', '("kd"', r"there is a method 'kd' already \(kdtable\.methods\.kd:KD\): choose another name"),
    "taken but for case": ('("near"', '("KDSVD"', "method 'KDSVD' differs from the method 'kdsvd' in case"),
    "no name": ('("near"', '("near+more"', r"'near\+more' cannot be a name"),
    "no formula": (
        "    def distillation",
        "    def other",
        "method 'near' has the term 'near' but no formula: write dist",
    ),
    "no term": ('    term = "near"\n', "", "method 'near' has a formula without a name: add term ="),
    "the task's term": ('    term = "near"', '    term = "kd"', "calls its term 'kd', which is the task's own"),
    "no method": ("class Near(Method)", "class Near", "method 'near' is no method: its class must extend"),
    "plain parameters": ("@dataclass(frozen=True)\n", "", r"put @dataclass\(frozen=True\) on NearParams"),
    "foreign term": (
        '"near": 2.0',
        '"nears": 2.0',
        "row that cannot be used: it has the term 'nears', and the class has",
    ),
    "a text as weight": ('"near": 2.0', '"near": "2"', "row that cannot be used: terms.near takes a number, not '2'"),
    "negative": ('"near": 2.0', '"near": -2.0', "the weight of 'near' is -2: use a finite one of at least 0"),
    "foreign schedule": ('{"near": {', '{"kd": {', "it has a schedule for 'kd', which is none of its terms"),
    "bad schedule": ('"warmup"', '"warmups"', "row that cannot be used: unknown setting schedules.near.warmups"),
    "bad params": (
        "schedules=",
        'params={"scales": 1.0}, schedules=',
        "unknown hyper-parameter 'scales'; did you mean",
    ),
    "no terms": ('terms={"ce": 1.0, "near": 2.0}, ', "", "the method 'near' has schedules but no terms"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_method_that_cannot_be_used_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    before, after, sentence = WRONG[case]
    assert before in METHOD
    file = write(tmp_path / "near.py", METHOD.replace(before, after))
    known = set(METHODS)
    with pytest.raises(BadRequest, match=sentence) as refused:
        plugins.load([file])
    assert str(file) in str(refused.value)
    assert set(METHODS) == known
    assert plugins.loaded() == ()
    plugins.load([write(file, METHOD)])
    assert "near" in METHODS


OTHERS = {
    "no network": (
        "nets.py",
        NETWORK.replace("(Network)", ""),
        "network 'smaller' is no network: its class must extend",
    ),
    "an alias": ("nets.py", NETWORK.replace('"small"', '"res-8"'), "network 'res-8' is how resnet8 can be written"),
    "several": (
        "nets.py",
        NETWORK.replace('"small"', '"ResNet18"'),
        "is how wide_resnet18 and tv_resnet18 can be writ",
    ),
    "a kind of data": ("sets.py", DATA.replace('"stripes"', '"NPZ"'), "data set 'NPZ' is how npz can be written"),
    "a known set": ("sets.py", DATA.replace('"stripes"', '"digits"'), "there is a data set 'digits' already"),
    "not a paper": ("near.toml", "[rows.near]\nterms = { ce = 1.0 }\n", "paper 'near' paper near: .* is missing"),
    "a known table": ("mine.toml", PAPER.replace("stripes-1", "crd-1"), "a table 'crd-1', which paper crd has too"),
    "a known paper": ("crd.toml", PAPER, "there is a paper 'crd' already"),
    "no file of a paper": ("a.py", "from kdtable import plugins\nplugins.paper('b.toml')", "there is no such file"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_things_that_cannot_be_used_are_refused(case: str, tmp_path: Path) -> None:
    name, text, sentence = OTHERS[case]
    known = {*models.NETWORKS}, {*PAPERS}
    with pytest.raises(BadRequest, match=sentence):
        plugins.load([write(tmp_path / name, text)])
    assert ({*models.NETWORKS}, {*PAPERS}) == known


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('"train_labels": labels,', ""), "data set stripes: has no array train_labels"),
        (("labels[:10]}", "labels[:9]}"), r"data set stripes: test_labels has shape \(9,\)"),
        (("return {", "return {}[0], {"), r"data set stripes cannot be made \(KeyError: 0\)"),
        (("return {", "return [], [], {"), "data set stripes: its function returns tuple; expected arrays by name"),
        (("return {", "return [], {"), "data set stripes: has 0 training and 4 test images"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    plugins.load([write(tmp_path / "sets.py", DATA.replace(*change))])
    with pytest.raises(BadRequest, match=sentence):
        data.resolve("stripes")


def test_a_data_set_of_map_style_parts(tmp_path: Path) -> None:
    before = DATA.partition("return {")[0]
    plugins.load(
        [write(tmp_path / "sets.py", f"{before}return list(zip(images, labels)), list(zip(images[:10], labels))")]
    )
    spec = data.resolve("stripes")
    assert (spec.num_classes, spec.image_size, spec.train_count, spec.test_count) == (2, 8, 40, 10)
    plugins.load([write(tmp_path / "sets.py", DATA)])
    arrays = data.resolve("stripes")
    assert (spec.mean, spec.std) == (arrays.mean, arrays.std)


def test_what_is_no_plug_in_file(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"--plugin gone\.py: there is no file /"):
        plugins.load(["gone.py"])
    with pytest.raises(BadRequest, match="is a folder: name a file in it"):
        plugins.load([tmp_path])
    with pytest.raises(BadRequest, match=r"a plug-in is a Python file \(\.py\) or a paper \(\.toml\)"):
        plugins.load([write(tmp_path / "near.txt", METHOD)])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[plugins", "kdtable.toml cannot be read"),
        ("[plugin]\nfiles = []", "unknown table 'plugin'; did you mean plugins"),
        ("[plugins]\nfile = 'a.py'", "has the unknown entry file"),
        ("[plugins]\nfiles = 'a.py'", "plugins.files is a list of files"),
        ("plugins = 1", r"plugins is a table: write \[plugins\]"),
    ],
)
def test_a_wrong_kdtable_toml(text: str, sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "kdtable.toml", text)
    with pytest.raises(BadRequest, match=sentence):
        plugins.configured(tmp_path)


def test_kdtable_toml_names_files_from_its_folder(tmp_path: Path) -> None:
    assert plugins.configured(tmp_path) == []
    write(tmp_path / "kdtable.toml", '[plugins]\nfiles = ["near.py", "/somewhere/else.py"]\n')
    assert plugins.configured(tmp_path) == [tmp_path / "near.py", Path("/somewhere/else.py")]


def test_the_users_own_kdtable_toml_names_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "kdtable").mkdir(parents=True)
    write(tmp_path / "config" / "kdtable" / "kdtable.toml", '[plugins]\nfiles = ["own.py"]\n[cluster]\ncpus = 2\n')
    write(tmp_path / "kdtable.toml", '[plugins]\nfiles = ["near.py"]\n')
    assert plugins.configured(tmp_path) == [tmp_path / "config" / "kdtable" / "own.py", tmp_path / "near.py"]
