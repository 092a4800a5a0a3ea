"""The published numbers: against those typed a second time in ``published``, and against the fact sheets."""

import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kdtable import papers
from tests.papers.sheets import flat, network, number, sheet, table_after


def unread(typed: Any) -> Any:
    """What was typed, with ``None`` for the empty text of a number that could not be read, beside others that could."""
    if isinstance(typed, dict):
        return {name: unread(value) for name, value in typed.items()}
    return [unread(value) for value in typed] if isinstance(typed, list) else None if typed == "" else typed


#: What was typed from the fact sheets pair by pair, apart from kdtable/papers. A row that a pair lacks has no number
#: that could be read. Numbers of several metrics are in their order.
TYPED: dict[str, dict[str, Any]] = {
    path.stem: unread(tomllib.loads(path.read_text()))
    for path in sorted(Path(__file__).with_name("published").glob("*.toml"))
}

#: Of one pair, row name to a number for each metric; "N/A" is what the paper says itself.
Rows = dict[str, list[float | str | None]]
Numbers = dict[str, Rows]


def numbers(paper: str, name: str) -> Numbers:
    """Of a paper's table, all that could be read, pair by pair."""
    table = papers.load(paper).tables[name]
    width = len(table.metrics)
    found: Numbers = {}
    for place, pair in enumerate(table.pairs):
        cells = {row: printed(values[place * width : (place + 1) * width]) for row, values in table.published.items()}
        found[str(pair)] = {row: cell for row, cell in cells.items() if cell != [None] * width}
    return found


def printed(values: Sequence[float | None]) -> list[float | str | None]:
    return ["N/A" if value is not None and math.isnan(value) else value for value in values]


def rows(paper: str, name: str, pair: str = "") -> Rows:
    """Of one pair of a table, which may be the only one."""
    found = numbers(paper, name)
    return found[pair] if pair else next(iter(found.values()))


def test_every_paper_with_tables_is_typed() -> None:
    assert {name for name in papers.names() if papers.load(name).tables} == TYPED.keys()


@pytest.mark.parametrize("paper", TYPED)
def test_tables_are_those_typed_apart(paper: str) -> None:
    found = {
        name: {
            "data": table.data,
            "metrics": list(table.metrics),
            "epoch": table.epoch,
            "rows": list(table.rows),
            "published_only": list(table.published_only),
            "pairs": numbers(paper, name),
        }
        for name, table in papers.load(paper).tables.items()
    }
    assert found == TYPED[paper]
    order = {name: list(table["pairs"]) for name, table in found.items()}
    assert order == {name: list(table["pairs"]) for name, table in TYPED[paper].items()}


@pytest.mark.parametrize("paper", TYPED)
def test_every_row_of_a_table_stands_there_with_or_without_numbers(paper: str) -> None:
    for table in papers.load(paper).tables.values():
        assert list(table.published) == ["teacher", "student", *table.rows]


# --- the fact sheets ---------------------------------------------------------------------------------------------

CD_ROWS = {"CD": "cd", "CD+GKD": "cd+gkd", "CD+GKD+EDT": "cd+gkd+edt", "KD": "kd"}
CD_HISTORY = {
    "KD + CE": "kd",
    "CD + CE": "cd",
    "CD + CE, lrdv1": "cd, lrdv1",
    "CD + CE, lrdv2": "cd, lrdv2",
    "CD + KD, lrdv2": "cd+kd, lrdv2",
    "CD + GKD, lrdv2": "cd+gkd, lrdv2",
}


@pytest.mark.parametrize(
    ("marker", "table", "names"),
    [
        ("**Table A", "cd-imagenet", CD_ROWS),
        ("**Table C", "cd-cifar100", CD_ROWS),
        ("**Table D", "cd-imagenet-history", CD_HISTORY),
    ],
)
def test_cd(marker: str, table: str, names: dict[str, str]) -> None:
    cells = table_after(sheet("cd"), marker)
    expected = {names.get(name, name): [number(top1), number(top5)] for name, top1, top5 in cells}
    assert rows("cd", table) == expected


def test_cd_against_other_methods() -> None:
    text = flat(sheet("cd"))
    (said,) = re.findall(r"\*\*Table B,.*?teacher, student and KD as above; (.*?)\. \*\*", text)
    names = {"FitNets": "fitnet", "AT": "at", "RKD": "residual-kd", **CD_ROWS}
    expected = {names[name]: [float(a), float(b)] for name, a, b in re.findall(r"(\S+) ([\d.]+) / ([\d.]+)", said)}
    above = rows("cd", "cd-imagenet")
    assert rows("cd", "cd-imagenet-others") == expected | {row: above[row] for row in ("teacher", "student", "kd")}


def test_mgd_on_birds() -> None:
    cells = table_after(sheet("mgd"), "**CUB-200, best")
    roles = {"teacher": "teacher", "student": "student", "MGD amp": "mgd", "MGD amp + KD": "mgd+kd"}
    for student in ("MobileNet-V2", "ShuffleNet-V2"):
        pair = f"tv_resnet50:mgd_{student.lower().replace('-', '')}"
        expected = {roles[role]: [float(a), float(b)] for name, role, a, b in cells if name in ("ResNet-50", student)}
        assert rows("mgd", "mgd-cub200", pair) == expected


def test_mgd_on_imagenet() -> None:
    text = flat(sheet("mgd"))
    (said,) = re.findall(r"\*\*ImageNet\*\* \[code cls/README\]: (.*?)\. \*\*", text)
    pairs = re.findall(r"(teacher|student|MGD amp) ([\d.]+) / ([\d.]+)", said)
    expected = {name.replace("MGD amp", "mgd"): [float(a), float(b)] for name, a, b in pairs}
    assert rows("mgd", "mgd-imagenet") == expected
    assert len(expected) == 3


def test_reviewkd() -> None:
    cells = table_after(sheet("reviewkd"), "| teacher -> student | T | S |")
    expected: Numbers = {}
    for pair, *values in cells:
        named = zip(("teacher", "student", "reviewkd", "reproduced"), map(number, values), strict=True)
        names = ":".join(network(name) for name in pair.split(" -> "))
        expected[names] = {row: [value] for row, value in named if value is not None}
    assert numbers("reviewkd", "reviewkd-1") | numbers("reviewkd", "reviewkd-2") == expected


def test_reviewkd_part_by_part() -> None:
    text = flat(sheet("reviewkd"))
    (said,) = re.findall(r"Component study of the same reproduction, ResNet-56 -> ResNet-20: (.*?)\. ", text)
    names = {
        "plain": "student",
        "residual framework + HCL (no ABF)": "residual framework + hcl",
        "+ ABF": "+ abf",
        "all": "reviewkd",
    }
    parts = [part.rpartition(" ") for part in said.split("; ")]
    assert rows("reviewkd", "reviewkd-parts") == {names.get(name, name): [float(value)] for name, _, value in parts}


def test_reviewkd_on_imagenet() -> None:
    (said,) = re.findall(r"ImageNet \[code README\]: (.*?)\. Paddle", flat(sheet("reviewkd")))
    found = re.findall(r"baseline ([\d.]+), ReviewKD (\d+\.\d+)", said)
    expected = [{"student": [float(student)], "reviewkd": [float(ours)]} for student, ours in found]
    assert list(numbers("reviewkd", "reviewkd-imagenet").values()) == expected


def test_torchdistill() -> None:
    text = sheet("reviewkd")
    names = {"pretrained student": "student", "L2 (CE+L2)": "cse-l2", "KR (ReviewKD)": "reviewkd"}
    names["Tf-KD (teacher ResNet-18)"] = "tf-kd"
    cells = table_after(text, "| method | original work |")
    said = [(names.get(name, name.lower()), number(original), number(own)) for name, original, own, _ in cells]
    teacher = float(re.findall(r"teacher ([\d.]+) / [\d.]+\.", flat(text))[0])
    own = {row: [value] for row, _, value in said if value is not None} | {"teacher": [teacher]}
    assert rows("torchdistill", "torchdistill") == own
    # A student that is trained alone is not an original work's.
    originals = {row: [value] for row, value, _ in said if value is not None}
    assert rows("torchdistill", "torchdistill-original") == originals


def test_nothing_of_dih_could_be_read() -> None:
    (said,) = (cells for cells in table_after(sheet("dih"), "## 8") if cells[0].startswith("DIH paper, all tables"))
    assert said[1] == "**NOT FOUND**"
    tables = papers.load("dih").tables.values()
    assert {value for table in tables for values in table.published.values() for value in values} == {None}
