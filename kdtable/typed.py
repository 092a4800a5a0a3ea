"""Read frozen dataclasses from TOML and JSON, and single values from a user's text, checked by annotations.

Built on pydantic, which is imported on first use: ``kdtable --help`` does not need it.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_origin, get_type_hints

from kdtable.errors import unknown

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T")

#: Expected types in words, by the first word of pydantic's error type.
WANTED: Final = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "dict": "a table of names and values",
    "mapping": "a table of names and values",
    "dataclass": "a table of names and values",
}
#: Messages for a number outside its range, by pydantic's error type: for a bound of 0, and for any other.
RANGES: Final = {
    "greater_than": ("be positive", "be above {gt:g}"),
    "greater_than_equal": ("not be negative", "be at least {ge:g}"),
    "less_than": ("be negative", "be below {lt:g}"),
    "less_than_equal": ("not be positive", "be at most {le:g}"),
}


def read(kind: type[T], values: Mapping[str, Any]) -> T:
    """Read a dataclass from a mapping of its fields, as in TOML or JSON: lists for tuples, tables for dataclasses.

    Example:
        read(Recipe, {"epochs": 240, "batch_size": 64, "lr": 0.05, "milestones": [150, 180, 210]})

    Raises:
        ValueError: an unknown name, or a value of the wrong type; says which, in one sentence.
    """
    from pydantic import ValidationError

    try:
        found: T = _strictly(kind, values)
    except ValidationError as error:
        raise ValueError(_sentence(error, kind)) from None
    return found


def changes(kind: type, values: Mapping[str, Any], what: str = "setting") -> dict[str, Any]:
    """Read values of some of a dataclass's fields, each in its field's type.

    Args:
        kind: the dataclass.
        values: from TOML or JSON.
        what: the word for a field in errors.

    Raises:
        ValueError: an unknown name, or a value of the wrong type; says which, in one sentence.
    """
    from pydantic import ValidationError

    known, found = annotations(kind), {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(str(unknown(what, name, known)))
        try:
            found[name] = _strictly(known[name], value)
        except ValidationError as error:
            raise ValueError(_sentence(error, kind, name)) from None
    return found


def _strictly(kind: Any, value: Any) -> Any:
    # In JSON only, pydantic's strict mode takes a list for a tuple but no text for a number.
    return _adapter(kind).validate_json(json.dumps(value), strict=True, extra="forbid")


def parse(annotation: Any, name: str, text: str) -> Any:
    """Parse a user's text as a value of a type; a tuple's numbers are separated by commas.

    Raises:
        ValueError: the text is not such a value; says what ``name`` takes.
    """
    from pydantic import ValidationError

    if get_origin(annotation) is tuple:
        return tuple(_number_of(annotation.__args__[0], name, part, text) for part in text.split(","))
    try:
        value = _adapter(annotation).validate_strings(text.lower() if annotation is bool else text)
    except ValidationError as error:
        raise ValueError(_of_value(error.errors()[0], name)) from None
    if (annotation is bool and text.lower() not in ("true", "false")) or (
        isinstance(value, float) and not isfinite(value)
    ):
        raise ValueError(f"{name} takes {'true or false' if annotation is bool else 'a number'}, not '{text}'")
    return value


def _number_of(annotation: Any, name: str, part: str, whole: str) -> Any:
    try:
        return parse(annotation, name, part)
    except ValueError:
        raise ValueError(f"{name} takes numbers like 150,180, not '{whole}'") from None


def annotations(kind: type) -> Mapping[str, Any]:
    """Annotations of a dataclass's fields, by name."""
    return _annotations(kind)


@cache
def _annotations(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _sentence(error: "ValidationError", kind: type, *outer: str) -> str:
    """The most useful of pydantic's errors as one sentence; ``outer`` is the path to the value."""
    found = error.errors(include_url=False)
    extra = [one for one in found if one["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    first = (extra or found)[0]  # a misspelt name is also reported as missing
    path = [*outer, *map(str, first["loc"])]
    where = ".".join(path)
    if extra:
        return str(unknown("setting", where, annotations(kind))) if len(path) == 1 else f"unknown setting {where}"
    if first["type"] == "missing":
        return f"{where} is missing"
    return _of_value(first, where)


def _of_value(first: "ErrorDetails", name: str) -> str:
    kind, context, given = first["type"], first.get("ctx", {}), first["input"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{name} is one of {context['expected'].replace(' or ', ', ').replace(chr(39), '')}, not '{given}'"
    if kind in RANGES:
        zero, other = RANGES[kind]
        (bound,) = context.values()
        negative = " it is " if zero.startswith("not") else " not "
        return f"{name} must {zero if bound == 0 else other.format(**context)},{negative}{given}"
    wanted = WANTED.get(kind.partition("_")[0], first["msg"])
    shown = given if isinstance(given, str) else json.dumps(given)
    return f"{name} takes {wanted}, not '{shown}'"
