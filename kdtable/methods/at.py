"""AT: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017.

The attention map of a feature map f is the mean over channels of f^2, flattened and scaled to unit length per
sample. The loss of a tap is the mean over samples and positions of the squared difference of the two maps. Taps are
summed. If sizes differ, the larger feature map is average-pooled to the smaller height before squaring.

As the CRD benchmark runs it: taps are the stage outputs, weight 1000. Unlike the paper's formula there is no factor 1/2
and no norm outside the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.methods.base import Method, Norms, Setting
from kdtable.methods.objective import Params, as_kind
from kdtable.methods.parts.adaptors import unequal_number
from kdtable.methods.parts.number_lists import numbers
from kdtable.methods.parts.pooling import pool_to_smaller
from kdtable.models.outputs import Outputs


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Sum over taps of the mean squared difference of attention maps.

    Args:
        student: feature maps (B, C, H, W), one per tap; channels may differ from the teacher's.
        teacher: the teacher's maps at the same taps, constants.

    Raises:
        ValueError: the numbers of taps differ.
    """
    taps = [
        F.mse_loss(_attention(s), _attention(t))
        for s, t in (pool_to_smaller(*pair) for pair in zip(student, teacher, strict=True))
    ]
    return sum(taps[1:], start=taps[0])


def _attention(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(dim=1).flatten(1), dim=1)


@dataclass(frozen=True)
class ATParams(Params):
    """Hyper-parameters.

    Attributes:
        at_stages: stage outputs to compare, counted from 0 ("2,3"); "" for all.
        at_pairing: "all" compares networks with equal numbers of stages; "first" as many of the first stages as both
            networks have, as the loop over taps of released codes does.
    """

    at_stages: str = ""
    at_pairing: Literal["all", "first"] = "all"


def _chosen(params: Params, count: int) -> list[int]:
    """The stages to compare, out of ``count``."""
    listed = as_kind(params, ATParams).at_stages
    found = numbers("at_stages", listed) if listed else tuple(map(float, range(count)))
    if not all(stage.is_integer() and 0 <= stage < count for stage in found):
        raise ValueError(f"at_stages lists stages from 0 to {count - 1} of these networks, not '{listed}'")
    return [int(stage) for stage in found]


def _fewer(student: Outputs, teacher: Outputs) -> int:
    """How many stages both networks have."""
    return min(len(student.stages), len(teacher.stages))


class AT(Method):
    """Attention transfer over stage outputs."""

    hyper = ATParams
    term = "at"
    student_features = frozenset({"stages"})
    teacher_features = frozenset({"stages"})

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shapes = setting.student_shapes, setting.teacher_shapes or setting.student_shapes
        if reason := self.inapplicable_with(setting.objective.params, *shapes, list):
            raise ValueError(reason)
        self._chosen = _chosen(setting.objective.params, _fewer(*shapes))

    @classmethod
    def inapplicable_with(
        cls, params: Params, student_shapes: Outputs, teacher_shapes: Outputs, norms: Norms
    ) -> str | None:
        """Refuse taps that cannot be paired, and stages that the networks do not have."""
        try:
            _chosen(params, _fewer(student_shapes, teacher_shapes))
        except ValueError as error:
            return str(error)
        if as_kind(params, ATParams).at_pairing == "first":
            return None
        return unequal_number(student_shapes.stages, teacher_shapes.stages)

    def distillation(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The attention loss of the stage outputs."""
        s, t = ([features[stage] for stage in self._chosen] for features in (student.stages, teacher.stages))
        return attention_loss(s, t)
