"""Requests of one small pair on the digits, and their teachers."""

from pathlib import Path

from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.planning.cohorts import PlannedRun
from kdtable.planning.request import Request
from kdtable.planning.teacher_refs import FileTeacher
from tests.asking import asked

DIGITS = BUILT_IN["digits"]


def teacher(name: str, data: DataSpec = DIGITS) -> FileTeacher:
    return FileTeacher(name, data.mean, data.std, name.ljust(64, "0"), Path(name))


def request(**changes: object) -> Request:
    return asked(Request(["resnet56:resnet20"], ["kd"], [1]), **{"data": "digits", **changes})


def dih(*methods: str, **changes: object) -> Request:
    return request(**{"paper": "dih", "pairs": ["resnet20:resnet8"], "methods": methods, **changes})


def by_row(cells: tuple[PlannedRun, ...]) -> dict[str, PlannedRun]:
    assert len({cell.row for cell in cells}) == len(cells)
    return {cell.row: cell for cell in cells}
