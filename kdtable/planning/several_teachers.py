"""Pairs with several teachers (``resnet56+resnet110:resnet20``): their weights, and the rows that they can teach."""

from typing import TYPE_CHECKING, Final

from kdtable.data.spec import DataSpec
from kdtable.errors import BadRequest
from kdtable.methods.objective import CombinedParams, Objective, Params, SoftTargetParams
from kdtable.models.sums import networks_of
from kdtable.papers import Pair, Row
from kdtable.planning.cohorts import teacher_features
from kdtable.planning.request import FindTeacher
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher, SeveralTeachers

if TYPE_CHECKING:
    from kdtable.methods.base import Method

#: What methods read of a teacher, in words.
_WORDS: Final = {"branches": "extra classifiers", "embedding": "embedding"}


def find_all(teacher: str, data: DataSpec, find_teacher: FindTeacher) -> FileTeacher | MissingTeacher | SeveralTeachers:
    """The weights of a pair's teacher, or of its several teachers.

    Raises:
        BadRequest: one cannot be found or used; the message names all of these.
    """
    found: list[FileTeacher | MissingTeacher] = []
    lacking: list[str] = []
    for network in networks_of(teacher):
        try:
            found.append(find_teacher(network, data))
        except BadRequest as error:
            lacking.append(str(error))
    if lacking:
        raise BadRequest("; ".join(lacking))
    return found[0] if len(found) == 1 else SeveralTeachers(tuple(found))


def needs_one_teacher(pair: Pair, row: Row, method: "type[Method]", objective: Objective) -> str | None:
    """Why several teachers cannot teach a row, in one clause; ``None`` if they can, or if the pair has one."""
    if len(networks_of(pair.teacher)) == 1:
        return None
    if "{teacher}" in row.student:
        return f"{row.name} trains the network of one teacher"
    if row.taught_by:
        return f"{row.name} learns from what {row.taught_by} makes of one teacher"
    if not method.needs_teacher(objective.terms):
        return None
    if not method.several_teachers:
        read = {_WORDS.get(feature, "maps") for feature in teacher_features(method)}
        return f"{row.name} compares the {' and '.join(sorted(read)) or 'logits'} of one teacher"
    return f"{row.name} standardises the logits of one teacher" if _standardises(objective.params) else None


def _standardises(params: Params) -> bool:
    if isinstance(params, CombinedParams):
        return any(map(_standardises, params.own.values()))
    return params.kd_standardise or (isinstance(params, SoftTargetParams) and params.standardise)
