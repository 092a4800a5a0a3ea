"""Dataclasses from TOML and from texts, and the sentences by which wrong ones are refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from pydantic import NonNegativeFloat, PositiveInt

from kdtable.typed import annotations, changes, parse, read


@dataclass(frozen=True, slots=True)
class Inner:
    """A part."""

    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outer:
    """A whole."""

    name: str
    count: PositiveInt = 1
    share: NonNegativeFloat = 0.5
    mode: Literal["code", "paper"] = "code"
    flag: bool = False
    rate: float | None = None
    parts: Mapping[str, Inner] = field(default_factory=dict)


def test_a_mapping_becomes_a_dataclass() -> None:
    raw = {"name": "a", "count": 2, "share": 1, "parts": {"x": {"steps": [1, 2]}}}
    found = read(Outer, raw)
    assert found == Outer("a", 2, 1.0, parts={"x": Inner((1, 2))})
    assert type(found.count) is int


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"nam": "b"}, "unknown setting 'nam'; did you mean name"),
        ({"name": 3}, "name takes a text, not '3'"),
        ({"count": 1.0}, "count takes a whole number, not '1.0'"),
        ({"count": "1"}, "count takes a whole number, not '1'"),
        ({"count": True}, "count takes a whole number, not 'true'"),
        ({"count": 0}, "count must be positive, not 0"),
        ({"share": "0.5"}, "share takes a number, not '0.5'"),
        ({"share": -1}, "share must not be negative, it is -1"),
        ({"mode": "text"}, "mode is one of code, paper, not 'text'"),
        ({"flag": 1}, "flag takes true or false, not '1'"),
        ({"rate": "high"}, "rate takes a number, not 'high'"),
        ({"parts": {"x": {"steps": [1.5]}}}, "parts.x.steps.0 takes a whole number, not '1.5'"),
        ({"parts": {"x": {"step": 1}}}, "unknown setting parts.x.step"),
        ({"parts": 3}, "parts takes a table of names and values, not '3'"),
    ],
)
def test_a_wrong_name_or_type_is_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        read(Outer, {"name": "a", **wrong})
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=sentence):
        changes(Outer, wrong)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="name is missing"):
        read(Outer, {})


def test_changes_are_of_some_fields_alone() -> None:
    assert changes(Outer, {"parts": {"x": {}}, "rate": 0.1}) == {"parts": {"x": Inner()}, "rate": 0.1}
    with pytest.raises(ValueError, match="unknown hyper-parameter 'modes'; did you mean mode"):
        changes(Outer, {"modes": "code"}, "hyper-parameter")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("share", ".5", 0.5),
        ("count", "3", 3),
        ("flag", "True", True),
        ("name", "0.1", "0.1"),
        ("mode", "paper", "paper"),
    ],
)
def test_texts_become_values_of_the_fields_type(name: str, text: str, value: object) -> None:
    found = parse(annotations(Outer)[name], name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("rate", "nan", "takes a number, not 'nan'"),
        ("rate", "inf", "takes a number, not 'inf'"),
        ("count", "2.5", "takes a whole number, not '2.5'"),
        ("count", "0", "must be positive, not 0"),
        ("flag", "1", "takes true or false, not '1'"),
        ("mode", "other", "is one of code, paper, not 'other'"),
    ],
)
def test_texts_of_another_type_are_refused(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(annotations(Outer)[name], f"--set {name}", text)
