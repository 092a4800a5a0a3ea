"""The papers' data: against the fact sheet where it lies beside the repository, and against literals."""

import math
from pathlib import Path

import pytest

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.models.names import canonical
from kdtable.papers import Pair, Table
from kdtable.recipe import Recipe

SHEET = Path(__file__).parents[1].parent / "shared" / "facts" / "crd.md"
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
    assert table.epoch in ("last", "best")
    assert table.source
    assert {"teacher", "student"} <= table.published.keys()
    assert all(0 < v < 100 for values in table.published.values() for v in values if not math.isnan(v))


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
    assert {**own.meaning(), "lr": 0.05} == crd.recipe.meaning()


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


@pytest.mark.parametrize("name", ["kdd", "crd+at", "vanilla+kd", "kd+kd", "", "+kd", "at+kd+kd"])
def test_unknown_rows_are_refused(crd: papers.Paper, name: str) -> None:
    with pytest.raises(BadRequest, match="unknown method"):
        crd.row(name)


def test_unknown_paper_names_the_known_ones() -> None:
    with pytest.raises(BadRequest, match="unknown paper 'crdd'; did you mean crd"):
        papers.load("crdd")


def test_a_paper_is_no_path() -> None:
    with pytest.raises(BadRequest, match="unknown paper"):
        papers.load("../papers/crd")


def test_find_table() -> None:
    paper, table = papers.find_table("crd-2")
    assert (paper.name, table.name) == ("crd", "crd-2")
    with pytest.raises(BadRequest, match=r"unknown table 'crd-3'; did you mean crd-[12]"):
        papers.find_table("crd-3")
