"""Networks that show no feature maps, such as vision transformers of other libraries."""

from typing import Final

from kdtable.methods.base import Method
from kdtable.models.outputs import Outputs

_MAPS: Final = ("stages", "preacts", "stem")


def without_maps(method: type[Method], student: Outputs, teacher: Outputs) -> str | None:
    """Why networks with these outputs lack the maps that a method reads; ``None`` if they do not."""
    early = method.early_teacher_features
    for who, outputs, features in (
        ("student", student, method.student_features | early),
        ("teacher", teacher, method.teacher_features | early),
    ):
        lacking = [name for name in _MAPS if name in features and _none(outputs, name)]
        if lacking:
            return f"the {who} shows no stem" if lacking == ["stem"] else f"the {who} shows no feature maps"
    return None


def _none(outputs: Outputs, name: str) -> bool:
    value = getattr(outputs, name)
    return value is None or value == ()
