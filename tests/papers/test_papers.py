"""The papers' data: against the fact sheet where it lies beside the repository, and against literals."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdtable import papers
from kdtable.data.spec import BUILT_IN
from kdtable.errors import BadRequest
from kdtable.methods import get
from kdtable.methods.objective import Objective
from kdtable.models.names import canonical
from kdtable.papers import Pair, Table, loader
from kdtable.papers.model import TableFile, table_of
from kdtable.recipes.metrics import EPOCHS, METRICS
from kdtable.recipes.recipe import Recipe
from kdtable.typed import read

SHEET = Path(__file__).parents[2].parent / "shared" / "facts" / "crd.md"
NAN = pytest.approx(math.nan, nan_ok=True)


@pytest.fixture
def crd() -> papers.Paper:
    return papers.load("crd")


def sheet_table(corner: str) -> tuple[list[Pair], dict[str, list[float]]]:
    """The table of the fact sheet whose top left cell is ``corner``."""
    if not SHEET.exists():
        pytest.skip(f"the fact sheet {SHEET.name} does not lie beside the repository")
    lines = SHEET.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {corner} |"))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *rows = cells
    pairs = [Pair(*(canonical(name.strip()) for name in text.split(">"))) for text in header[1:]]
    numbers = {row[0].lower(): [math.nan if text == "N/A" else float(text) for text in row[1:]] for row in rows}
    return pairs, numbers


@pytest.mark.parametrize(("name", "corner", "rows"), [("crd-1", "same style", 15), ("crd-2", "different style", 14)])
def test_published_numbers_equal_the_fact_sheet(crd: papers.Paper, name: str, corner: str, rows: int) -> None:
    pairs, numbers = sheet_table(corner)
    assert len(numbers) == rows
    table = crd.tables[name]
    assert list(table.pairs) == pairs
    assert table.published.keys() == numbers.keys()
    for row, values in numbers.items():
        assert list(table.published[row]) == pytest.approx(values, rel=0, abs=0, nan_ok=True), row
    assert list(table.rows) == [row for row in numbers if row not in ("teacher", "student")]


@pytest.mark.parametrize(
    ("table", "row", "pair", "number"),
    [
        ("crd-1", "crd", "resnet32x4:resnet8x4", 75.51),
        ("crd-1", "teacher", "resnet110:resnet32", 74.31),
        ("crd-1", "student", "vgg13:vgg8", 70.36),
        ("crd-1", "fsp", "wrn_40_2:wrn_40_1", NAN),
        ("crd-1", "kd", "resnet56:resnet20", 70.66),
        ("crd-2", "crd", "cifar_resnet50:MobileNetV2", 69.11),
        ("crd-2", "at", "vgg13:MobileNetV2", 59.40),
        ("crd-2", "nst", "wrn_40_2:ShuffleV1", 74.89),
    ],
)
def test_spot_numbers(crd: papers.Paper, table: str, row: str, pair: str, number: float) -> None:
    found = crd.tables[table]
    column = [str(p) for p in found.pairs].index(pair)
    assert found.published[row][column] == number


def tables() -> list[Table]:
    return [table for name in papers.names() for table in papers.load(name).tables.values()]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.name)
def test_tables_are_well_formed(table: Table) -> None:
    assert all(canonical(name) == name for pair in table.pairs for name in (pair.teacher, pair.student))
    assert len(set(table.pairs)) == len(table.pairs)
    assert table.epoch in EPOCHS
    assert table.source
    assert {"teacher", "student"} <= table.published.keys()
    assert {len(values) for values in table.published.values()} == {len(table.pairs) * len(table.metrics)}
    assert set(table.metrics) <= METRICS.keys()
    assert set(table.published_only) <= set(table.rows)
    read = [v for values in table.published.values() for v in values if v is not None]
    assert all(0 < v < 100 for v in read if not math.isnan(v))
    assert read or "could not be read" in table.source


def written(numbers: object) -> dict[str, object]:
    """A table with two columns as TOML gives it, whose row ``kd`` has ``numbers``."""
    about = {"title": "t", "source": "s", "data": "cifar10", "metric": "top1", "epoch": "last"}
    pairs = ["resnet56:resnet20", "resnet110:resnet20"]
    return {**about, "pairs": pairs, "published": {"teacher": [], "student": [69.1, ""], "kd": numbers}}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], (None, None)), ([70.5, ""], (70.5, None)), ([71, 72.5], (71.0, 72.5)), ([math.nan, 1.0], (NAN, 1.0))],
)
def test_cells_that_could_not_be_read(numbers: list[object], expected: tuple[object, ...]) -> None:
    table = table_of("some", read(TableFile, written(numbers)))
    assert table.published == {"teacher": (None, None), "student": (69.1, None), "kd": expected}
    assert table.rows == ("kd",)


@pytest.mark.parametrize("numbers", [[70.5], [70.5, "", 71.0], ["", "", ""]])
def test_a_row_has_one_number_per_pair_or_none(numbers: list[object]) -> None:
    with pytest.raises(ValueError, match=f"table some, row kd: {len(numbers)} numbers for 2 pairs"):
        table_of("some", read(TableFile, written(numbers)))


def test_a_table_of_several_metrics_has_a_number_for_each_metric_of_each_pair() -> None:
    errors = {"metrics": ["top1-error", "top5-error"], "published_only": ["other"]}
    raw: dict[str, Any] = written([29.5, 9.52, "", 8.0]) | errors
    raw["published"] = {"student": [], "kd": raw["published"]["kd"], "other": [28.0, 9.0, 27.0, math.nan]}
    table = table_of("some", read(TableFile, raw))
    assert table.metrics == ("top1-error", "top5-error")
    assert table.trained == ("vanilla", "kd")
    assert [table.printed("kd", i, METRICS[metric]) for i in (0, 1) for metric in table.metrics] == [
        29.5,
        9.52,
        None,
        8.0,
    ]
    assert [table.printed("kd", i, METRICS[metric]) for i in (0, 1) for metric in ("top1", "top5")] == [
        70.5,
        90.48,
        None,
        92.0,
    ]
    assert table.printed("student", 1, METRICS["top5-error"]) is None
    assert table.printed("no row", 0, METRICS["top1-error"]) is None
    assert table.printed("other", 1, METRICS["top5"]) == NAN
    raw["published"]["kd"] = [29.5, 9.52]
    with pytest.raises(ValueError, match="table some, row kd: 2 numbers for 2 pairs and 2 metrics"):
        table_of("some", read(TableFile, raw))


def test_a_table_of_one_metric_says_nothing_of_others() -> None:
    table = table_of("some", read(TableFile, written([70.5, 71.0])))
    assert table.metrics == ("top1",)
    assert {name: (own := table.printed_as(metric)) and own.name for name, metric in list(METRICS.items())[:4]} == {
        "top1": "top1",
        "top1-error": "top1",
        "top5": None,
        "top5-error": None,
    }
    assert table.printed("kd", 1, METRICS["top1-error"]) == 29.0
    assert table.printed("kd", 1, METRICS["top5"]) is None


def test_a_table_names_metrics_and_rows_that_exist() -> None:
    with pytest.raises(ValueError, match="unknown metric 'top-1'"):
        table_of("some", read(TableFile, written([]) | {"metric": "top-1"}))
    with pytest.raises(ValueError, match="table some: at, nst is published only, but has no numbers"):
        table_of("some", read(TableFile, written([]) | {"published_only": ["kd", "nst", "at"]}))


def test_the_n_a_cells_are_those_of_fsp(crd: papers.Paper) -> None:
    empty = [
        (table.name, row)
        for table in crd.tables.values()
        for row, v in table.published.items()
        if any(map(math.isnan, v))
    ]
    assert empty == [("crd-1", "fsp")]


def test_recipe(crd: papers.Paper) -> None:
    assert crd.data == "cifar100"
    assert crd.recipe == Recipe(
        epochs=240,
        batch_size=64,
        lr=0.05,
        milestones=(150, 180, 210),
        lr_factor=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        crop_padding=4,
    )


@pytest.mark.parametrize("student", ["MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_mobile_students_have_a_lower_rate(crd: papers.Paper, student: str) -> None:
    own = crd.recipe_for(student)
    assert own.lr == 0.01
    assert {**own.identity(), "lr": 0.05} == crd.recipe.identity()


@pytest.mark.parametrize("student", ["resnet20", "vgg8", "wrn_16_2", "cifar_resnet50"])
def test_other_students_have_the_common_rate(crd: papers.Paper, student: str) -> None:
    assert crd.recipe_for(student) == crd.recipe


CRD_PARAMS = {"dim": 128, "negatives": 16384, "tau": 0.07, "bank_momentum": 0.5, "mode": "exact"}


@pytest.mark.parametrize(
    ("name", "terms", "params"),
    [
        ("vanilla", {"ce": 1.0}, {}),
        ("kd", {"ce": 0.1, "kd": 0.9}, {"kd_temperature": 4.0}),
        ("at", {"ce": 1.0, "at": 1000.0}, {}),
        ("crd", {"ce": 1.0, "crd": 0.8}, CRD_PARAMS),
        ("crd+kd", {"ce": 1.0, "kd": 1.0, "crd": 0.8}, {"kd_temperature": 4.0, **CRD_PARAMS}),
        ("at+kd", {"ce": 0.1, "kd": 0.9, "at": 1000.0}, {"kd_temperature": 4.0}),
    ],
)
def test_rows(crd: papers.Paper, name: str, terms: dict[str, float], params: dict[str, object]) -> None:
    row = crd.row(name)
    assert row.name == name
    assert row.terms == terms
    assert list(row.terms) == list(terms), "terms are added in this order"
    assert row.params == params


@pytest.mark.parametrize("name", ["kdd", "crd+at", "", "+kd", "at+kd+kd", "cd+gkd+kd"])
def test_unknown_rows_are_refused(crd: papers.Paper, name: str) -> None:
    with pytest.raises(BadRequest, match="unknown method"):
        crd.row(name)


def test_unknown_paper_names_the_known_ones() -> None:
    with pytest.raises(BadRequest, match="unknown paper 'crdd'; did you mean crd"):
        papers.load("crdd")


def test_a_paper_is_no_path() -> None:
    with pytest.raises(BadRequest, match="unknown paper"):
        papers.load("../papers/crd")


# --- DIH ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dih() -> papers.Paper:
    return papers.load("dih")


def test_rows_of_dih(dih: papers.Paper) -> None:
    assert dih.seeds == (30, 50, 67)
    assert {table.data for table in dih.tables.values()} == {"cifar10", "cifar100", "tiny-imagenet"}
    assert {t.rows for t in dih.tables.values()} == {
        ("kd", "fitnet-2stage", "takd", "at", "crd", "tofd", "mhkd", "dih")
    }
    needed = {row.taught_by for row in dih.rows.values() if row.taught_by}
    assert needed == {"kd", "heads", "tofd-teacher"} <= dih.rows.keys()


def test_every_row_of_a_paper_names_what_exists() -> None:
    for paper in map(papers.load, papers.names()):
        fields = set(Recipe.__dataclass_fields__)
        for row in paper.rows.values():
            assert get(row.name, paper.task).term is None or row.terms
            assert row.recipe.keys() <= fields, row.name
            assert not row.taught_by or row.taught_by in paper.rows, row.name
            assert all(canonical(name) == name for name in row.assistant.values()), row.name
            assert row.student.format(teacher="resnet20", student="resnet8")
        for changes in paper.readings.values():
            assert changes.recipe.keys() <= fields
            for name, params in changes.rows.items():
                assert params.keys() <= paper.rows[name].params.keys(), name


def test_a_reading_changes_what_it_lists_and_nothing_else(dih: papers.Paper) -> None:
    assert dih.read_as("code") is dih
    text = dih.read_as("paper")
    assert text.recipe == replace(dih.recipe, lr_factor=0.1)
    changed = {name for name, row in text.rows.items() if row != dih.rows[name]}
    assert changed == {"heads", "dih", "tofd", "mhkd"}
    assert text.tables == dih.tables
    with pytest.raises(BadRequest, match="unknown reading of paper dih 'texts'"):
        dih.read_as("texts")


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "tiny-imagenet"])
def test_constants_of_dih(dih: papers.Paper, data: str) -> None:
    own = dih.data_spec(data)
    assert (own.mean, own.std) == tuple(tuple(dih.normalisation[data][key]) for key in ("mean", "std"))
    assert replace(own, mean=BUILT_IN[data].mean, std=BUILT_IN[data].std) == BUILT_IN[data]
    assert dih.data_spec("digits") == BUILT_IN["digits"]
    assert dih.data_spec(None).kind == "cifar100"


def shared_recipe(paper: str, row: str, recipe: dict[str, Any], kind: str, student: str = "") -> dict[str, Any]:
    """A stored recipe with the row's own changes undone."""
    own = papers.own_recipe(paper, row, kind, student)
    return recipe if own is None else own.put_back(Recipe.from_mapping(recipe)).identity()


def test_what_is_a_rows_own_is_put_back(dih: papers.Paper) -> None:
    shared = dih.recipe.identity()
    for name, row in dih.rows.items():
        own = replace(dih.recipe, **row.recipe)
        assert shared_recipe("dih", name, own.identity(), "cifar100") == shared, name
    # What a user asked for stays.
    asked = replace(dih.recipe, batch_size=32, nesterov=False)
    assert shared_recipe("dih", "kd", asked.identity(), "cifar100") == asked.identity()
    assert shared_recipe("dih", "crd", asked.identity(), "cifar100") == replace(asked, nesterov=True).identity()
    assert shared_recipe("unheard-of", "kd", asked.identity(), "cifar100") == asked.identity()


def test_a_rate_of_the_rows_own_is_put_back_to_the_students(monkeypatch: pytest.MonkeyPatch, crd: papers.Paper) -> None:
    rows = {**crd.rows, "at": replace(crd.rows["at"], recipe={"lr": 0.3})}
    monkeypatch.setattr(loader, "load", lambda name: replace(crd, rows=rows))
    trained = replace(crd.recipe, lr=0.3).identity()
    for student, lr in (("resnet20", 0.05), ("MobileNetV2", 0.01)):
        assert shared_recipe("crd", "at", trained, "cifar100", student) == replace(crd.recipe, lr=lr).identity()
        assert shared_recipe("crd", "kd", trained, "cifar100", student) == trained


def test_defaults_have_schedules_at_the_length_of_the_run() -> None:
    pair = ("cd_resnet152", "cd_resnet50")
    own = papers.load("cd").row("cd+gkd+edt")
    for epochs, off, steps in ((200, 60, [60, 160]), (20, 6, [6, 16])):
        found = papers.defaults("cd", "cd+gkd+edt", pair, "cifar100", epochs)
        assert found is not None
        terms, params, schedules, _ = found
        assert (terms, params) == (own.terms, own.params)
        assert schedules == {"ce": {"off_until": off}, "gkd": {"off_until": off}, "cd": {"steps": steps, "factor": 0.9}}
    assert papers.defaults("crd", "kd", ("resnet56", "resnet20"), "cifar100", 240) == (
        {"ce": 0.1, "kd": 0.9},
        {"kd_temperature": 4.0},
        {},
        {"pretrained": False},
    )
    assert papers.defaults("crd", "no row", pair, "cifar100", 240) is None


def test_find_table() -> None:
    paper, table = papers.find_table("crd-2")
    assert (paper.name, table.name) == ("crd", "crd-2")
    with pytest.raises(BadRequest, match=r"unknown table 'crd-3'; did you mean crd-[12]"):
        papers.find_table("crd-3")


# --- what papers state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", papers.names())
def test_every_hyper_parameter_of_a_paper_is_one_of_its_method(name: str) -> None:
    """Those that ``kdtable list methods`` shows, which reads no method."""
    paper = papers.load(name)
    for view in (paper, *map(paper.on, paper.on_data), *map(paper.read_as, paper.readings)):
        for row in view.rows.values():
            for stated in (row.params, row.as_guest, *row.student_params.values()):
                found = Objective.of(get(row.name, paper.task).hyper, row.terms, stated)
                # Written as their type has them: a whole number for a float would move ids.
                same = [type(value) is type(found.named_params[key]) for key, value in stated.items()]
                assert found.named_params.items() >= stated.items()
                assert all(same), (row.name, stated)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("lr = 0.05", 'lr = "0.05"', "recipe.lr takes a number, not '0.05'"),
        ("nesterov = false", "nestorov = false", "unknown setting recipe.nestorov"),
        ("terms = { ce = 1.0 }", "weights = { ce = 1.0 }", "row vanilla: unknown setting 'weights'"),
        ("kd = 0.9 }", 'kd = "0.9" }', "row kd: terms.kd takes a number, not '0.9'"),
        ("MobileNetV2 = { lr", "MobileNetV2 = { rate", "unknown recipe field 'rate'"),
        ('title = "CRD table 1', 'name = "CRD table 1', "unknown setting tables.crd-1.name"),
    ],
)
def test_a_wrong_name_or_type_in_a_papers_file_is_one_sentence(
    before: str, after: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = loader.PAPERS["crd"].read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "wrong.toml").write_text(text.replace(before, after))
    monkeypatch.setattr(loader, "PAPERS", {"wrong": tmp_path / "wrong.toml"})
    with pytest.raises(BadRequest, match=f"paper wrong: {sentence}"):
        papers.load("wrong")
