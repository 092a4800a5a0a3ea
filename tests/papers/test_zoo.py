"""The numbers of the newer methods' tables against the fact sheet, and the settings that its rows have by pair."""

import math
import re
from typing import Any

import pytest

from kdtable import papers
from kdtable.methods import get
from kdtable.methods.objective import Objective
from tests.papers.sheets import sheet

SAME = {
    "a": "resnet56:resnet20",
    "a'": "resnet110:resnet20",
    "b": "resnet110:resnet32",
    "c": "resnet32x4:resnet8x4",
    "d": "wrn_40_2:wrn_16_2",
    "e": "wrn_40_2:wrn_40_1",
    "f": "vgg13:vgg8",
}
CROSS = {
    "g": "vgg13:MobileNetV2",
    "h": "cifar_resnet50:MobileNetV2",
    "i": "cifar_resnet50:vgg8",
    "j": "resnet32x4:ShuffleV1",
    "k": "resnet32x4:ShuffleV2",
    "l": "wrn_40_2:ShuffleV1",
}
#: Row name to that of the sheet's line, and the place of its number where a line has several.
ROWS = {
    "kd": ("KD", 0),
    "crd": ("CRD", 0),
    "reviewkd": ("ReviewKD", 0),
    "dkd": ("DKD", 0),
    "dist": ("DIST", 0),
    "ctkd": ("CTKD", 0),
    "kd+ls": ("KD + LS", 0),
    "ctkd+ls": ("CTKD + LS", 0),
    "dkd+ls": ("DKD + LS", 0),
    "ttm": ("TTM", 0),
    "wttm": ("WTTM", 0),
    "ikl": ("IKL-KD", 0),
    "rld": ("RLD", 0),
    "ofd": ("OFD", 0),
    "srrl+kd": ("SimKD", 2),
    "sdd": ("SD-KD", 0),
    "sdd+dkd": ("SD-DKD", 0),
    "nd+kd": ("KD++", 0),
    "dot": ("DOT + KD", 0),
    "simkd": ("SimKD", 0),
}
#: Numbers that the sheet has in its text.
IN_TEXT = {("dot", "k"): (75.55, "k 75.55"), ("srrl+kd", "j"): (75.18, "j 75.18 (NORM's table)")}
#: Quoted in the sheet without the name of the source.
UNNAMED = {("dkd", "a'")}


def lines(text: str, head: str) -> dict[str, list[str]]:
    """The lines of the sheet's table with this head, by the method's name without its source."""
    part = text[text.index(head) :].split("\n\n", 2)[1]
    found = {}
    for line in part.splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[re.sub(r"[*]|\s*([\[(]| / ).*", "", name).strip()] = cells
    return found


def number(cell: str, place: int) -> float | None:
    """A line's number of a pair; IKL's have a deviation behind them."""
    text = [part.strip(" *") for part in cell.replace("*", "").split("/")]
    found = re.match(r"[\d.]+", text[place] if place < len(text) else "")
    return float(found[0]) if found else None


@pytest.mark.parametrize(
    ("table", "head", "pairs"), [("zoo-1", "### 4.1 Same style", SAME), ("zoo-2", "### 4.2 Cross style", CROSS)]
)
def test_published_numbers_are_those_of_the_sheet(table: str, head: str, pairs: dict[str, str]) -> None:
    text, printed = lines(sheet("newer"), head), papers.load("zoo").tables[table]
    assert [str(pair) for pair in printed.pairs] == list(pairs.values())
    for row, (name, place) in ROWS.items():
        found = [number(cell, place) for cell in text[name]] if name in text else []
        found = found or [None] * len(pairs)
        expected = [None if (row, pair) in UNNAMED else x for pair, x in zip(pairs, found, strict=True)]
        expected = [IN_TEXT.get((row, pair), (x,))[0] for pair, x in zip(pairs, expected, strict=True)]
        own = [None if value is None or math.isnan(value) else value for value in printed.published[row]]
        assert own == expected, row
    assert all(said in sheet("newer") for _, said in IN_TEXT.values())
    others = printed.published.keys() - ROWS.keys() - {"teacher", "student"}
    assert all(value is None for row in others for value in printed.published[row])


def test_numbers_of_mlkd_are_those_of_the_sheet() -> None:
    text = sheet("newer")
    same, cross = (lines(text, head) for head in ("### 4.1 Same style", "### 4.2 Cross style"))
    places = {"mlkd": ("MLKD", 0), "mlkd+ls": ("MLKD + LS", 0), "kd": ("KD", 0)}
    for name, cells, pairs in (("mlkd-1", same, SAME), ("mlkd-2", cross, CROSS)):
        table = papers.load("mlkd").tables[name]
        for row, (line, place) in places.items():
            of_line = (line, place) if line in cells else ("MLKD", 1)
            found = {
                pair: number(cell, of_line[1]) for pair, cell in zip(pairs.values(), cells[of_line[0]], strict=True)
            }
            assert [found[str(pair)] for pair in table.pairs] == list(table.published[row]), row
        lacking = set(pairs.values()) - {str(pair) for pair in table.pairs}
        of_mlkd = dict(zip(pairs.values(), cells["MLKD"], strict=True))
        assert all(number(of_mlkd[pair], 0) is None for pair in lacking)


def test_every_row_of_the_tables_names_its_source() -> None:
    for paper, name in (("zoo", "zoo-1"), ("zoo", "zoo-2"), ("mlkd", "mlkd-1"), ("mlkd", "mlkd-2")):
        table = papers.load(paper).tables[name]
        assert table.row_sources.keys() == set(table.rows)


def test_independent_re_runs_are_those_of_the_sheet() -> None:
    text, table = sheet("newer"), papers.load("zoo").tables["rerun-imagenet"]
    (head,) = re.findall(r"\n\| \|( KD \|.*)", text)
    names = [name.strip().lower() for name in head.strip("| ").split("|")]
    expected: dict[str, float] = {}
    for said in ("mmrazor", "torchdistill"):
        (line,) = re.findall(rf"\n\| [^|]*{said}[^|]*\|(.*)\|", text)
        for name, cell in zip(names, line.split("|"), strict=True):
            if own := re.match(r"\W*([\d.]+)", cell):
                expected[f"{name}: {said}"] = float(own[1])
            if claim := re.findall(r"\(([\d.]+)\)", cell):
                expected[f"{name}: paper"] = float(claim[0])
    expected |= {"dist: mmrazor, mean of three": 71.80, "dot: paper": 72.03, "dot: a user of mdistiller": 68.93}
    assert "DOT 68.93 (72.03)" in text
    assert "its three runs average 71.80" in text
    roles = ("teacher", "student")
    assert {row: values[0] for row, values in table.published.items() if row not in roles} == expected
    assert table.trained == ("vanilla",)


def params(row: str, pair: str) -> dict[str, Any]:
    teacher, student = pair.split(":")
    return papers.load("zoo").row(row).params_for(student, teacher)


def test_settings_by_pair_are_those_of_the_sheet() -> None:
    text = sheet("newer")
    pairs = SAME | CROSS
    for name, line in (("ikl", "IKL alpha, beta"), ("gkl", "GKL alpha, beta"), ("gkl", "GKL gamma / prior")):
        (cells,) = re.findall(rf"\n\| {re.escape(line)} \|(.*)\|", text)
        letters = "abcdefghjkl"
        for letter, cell in zip(letters, cells.split("|"), strict=True):
            own, (first, second) = params(name, pairs[letter]), re.split(r"[,/] ?", cell.strip().replace(" / ", "/"))
            if "gamma" in line:
                assert (own["gamma"], own["class_prior"]) == (float(first), second == "yes")
            else:
                assert (own["alpha"], own["beta"]) == (float(first), float(second))
    (said,) = re.findall(r"\*\*beta\*\*: (.*?), all others 8", text)
    betas = {letter: float(beta) for letter, beta in (part.split() for part in said.split(", "))}
    for letter, pair in pairs.items():
        for row in ("dkd", "dkd+ls"):
            assert params(row, pair)["beta"] == betas.get(letter, 8.0), (row, pair)


def test_standardisation_by_pair_is_that_of_the_sheet() -> None:
    (said,) = re.findall(r"Released logs' settings \(T, w\) for KD: (.*?)\. The", sheet("newer").replace("\n", " "))
    row = papers.load("zoo").row("kd+ls")
    for letter, values in (part.split(" ") for part in said.split("; ")):
        temperature, weight = map(float, values.split(","))
        teacher, student = (SAME | CROSS)[letter].split(":")
        assert row.params_for(student, teacher)["kd_temperature"] == temperature
        assert row.terms_for(teacher, student) == {"ce": 0.1, "kd": weight}


@pytest.mark.parametrize(
    ("name", "terms", "params"),
    [
        ("kd+ls", {"ce": 0.1, "kd": 9.0}, {"kd_temperature": 2.0, "kd_standardise": True}),
        ("at+kd+ls", {"ce": 0.1, "kd": 0.9, "at": 1000.0}, {"kd_temperature": 4.0, "kd_standardise": True}),
        ("wttm+ls", {"ce": 1.0, "wttm": 4.0}, {"gamma": 0.2, "standardise": True}),
    ],
)
def test_rows_with_standardised_logits(name: str, terms: dict[str, float], params: dict[str, Any]) -> None:
    """Of any paper: those that are listed are guests elsewhere."""
    for paper in ("zoo", "crd"):
        row = papers.load(paper).row(name)
        assert (row.name, dict(row.terms), dict(row.params)) == (name, terms, params)
        assert Objective.of(get(name).hyper, row.terms, row.params).named_params == params


def test_readings() -> None:
    zoo = papers.load("zoo")
    assert zoo.row("rld").params["beta"] == 8.0
    assert zoo.read_as("paper").row("rld").params["beta"] == 4.0
    assert zoo.read_as("sdd-copy").row("nkd").params == {"temperature": 1.0, "gamma": 1.5, "keeps_label": True}
