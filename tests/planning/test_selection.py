"""Pairs, rows and seeds in the user's words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtable import papers
from kdtable.errors import BadRequest
from kdtable.papers import Pair
from kdtable.planning.selection import parse_pairs, parse_seeds, parse_selection

CRD = papers.load("crd")


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", [1, 2, 3]),
        ("1", [1]),
        ("7,8,9", [7, 8, 9]),
        ("7,", [7]),
        ("0,", [0]),
        (" 4 , 2 ", [4, 2]),
        ("5,5,1", [5, 1]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", " ", ",", "0", "-1", "1,-2", "a", "1.5", "1,b", "1;2"])
def test_seeds_that_cannot_be_used(text: str) -> None:
    with pytest.raises(BadRequest, match="--seeds"):
        parse_seeds(text)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_a_list_of_seeds_is_kept_without_repetitions(seeds: list[int]) -> None:
    assert parse_seeds(",".join(map(str, seeds)) + ",") == list(dict.fromkeys(seeds))


@given(st.integers(1, 300))
def test_a_count_of_seeds(count: int) -> None:
    assert parse_seeds(str(count)) == list(range(1, count + 1))


@given(st.text(max_size=6))
def test_any_text_gives_seeds_or_a_refusal(text: str) -> None:
    try:
        seeds = parse_seeds(text if not text.strip().isdecimal() else text[:2])
    except BadRequest:
        return
    assert seeds
    assert min(seeds) >= 0


def test_all_pairs() -> None:
    assert len(parse_pairs(["all"], CRD)) == 13


@pytest.mark.parametrize(("table", "count"), [("crd-1", 7), ("crd-2", 6)])
def test_pairs_of_a_table(table: str, count: int) -> None:
    assert parse_pairs([table], CRD) == list(CRD.tables[table].pairs)
    assert len(CRD.tables[table].pairs) == count


def test_pairs_in_any_spelling_and_once() -> None:
    texts = ["resnet56:resnet20", "res56:ResNet-20", "crd-1", "ResNet50:shufflenetv1"]
    pairs = parse_pairs(texts, CRD)
    assert pairs[0] == Pair("resnet56", "resnet20")
    assert pairs[-1] == Pair("cifar_resnet50", "ShuffleV1")
    assert len(pairs) == len(set(pairs)) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crd-3", "unknown pair 'crd-3'; did you mean crd-[12]"),
        ("resnet56-resnet20", "unknown pair"),
        ("resnet57:resnet20", "unknown network 'resnet57'"),
        ("resnet56:", "unknown network"),
        ("resnet56:shufflenet", "ambiguous"),
    ],
)
def test_pairs_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_pairs([text], CRD)


def test_no_pair_at_all() -> None:
    with pytest.raises(BadRequest, match="at least one pair"):
        parse_pairs([], CRD)


def test_what_is_left_out_is_all_that_a_paper_has() -> None:
    assert parse_selection("dih", None, None, None) == ("dih", ["all"], [], [30, 50, 67])
    assert parse_selection("crd", "crd-1", None, "2") == ("crd", ["crd-1"], [], [1, 2])
    assert parse_selection(None, "a:b, crd-1", "kd,at", None) == ("crd", ["a:b", "crd-1"], ["kd", "at"], [1])


@pytest.mark.parametrize(
    ("pairs", "methods", "lacking"), [(None, None, "--pairs"), (None, "kd", "--pairs"), ("all", None, "--methods")]
)
def test_without_a_paper_pairs_and_rows_must_be_named(pairs: str | None, methods: str | None, lacking: str) -> None:
    with pytest.raises(BadRequest, match=f"{lacking} is missing; name it, or a paper with --paper"):
        parse_selection(None, pairs, methods, None)


def test_a_list_without_a_row_is_refused() -> None:
    with pytest.raises(BadRequest, match="at least one method"):
        parse_selection("crd", None, " , ", None)
