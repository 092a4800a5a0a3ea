"""The base class of methods on detectors."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from kdtable.methods.base import Method, Setting
from kdtable.models.detection.batch import DetectionBatch
from kdtable.models.detection.outputs import DetectorOutputs
from kdtable.models.outputs import Outputs


class DetectorMethod(Method):
    """A method whose networks return :class:`DetectorOutputs`.

    A subclass gives :meth:`distilled` in place of ``distillation``, and may give :meth:`unfit_detectors` in place of
    ``inapplicable``.

        class L1(DetectorMethod):
            term, student_features, teacher_features = "l1", frozenset({"levels"}), frozenset({"levels"})
            def distilled(self, student, teacher, batch): return F.l1_loss(student.levels[0], teacher.levels[0])

    ``student_features`` and ``teacher_features`` are of `kdtable.models.detection.outputs.FEATURES`. Means over boxes
    or places are those of one device's shard, as torchvision's own losses are.
    """

    @classmethod
    def inapplicable(cls, student_shapes: Outputs, teacher_shapes: Outputs) -> str | None:
        """See the base class."""
        return cls.unfit_detectors(detected(student_shapes), detected(teacher_shapes))

    @classmethod
    def unfit_detectors(cls, student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
        """Why the method cannot run on detectors with these outputs, in one clause; ``None`` if it can."""
        return None

    def own_terms(self) -> Mapping[str, Callable[[Outputs, Outputs, Any], Tensor]]:
        """See the base class."""
        return {self.term: cast("Callable[[Outputs, Outputs, Any], Tensor]", self.distilled)}

    def distilled(self, student: DetectorOutputs, teacher: DetectorOutputs, batch: DetectionBatch) -> Tensor:
        """The method's own unweighted term as a scalar; teacher tensors are constants."""
        raise TypeError(f"{type(self).__name__} has no term of its own")


def detected(outputs: object) -> DetectorOutputs:
    """The outputs, which are a detector's."""
    return cast(DetectorOutputs, outputs)


def shapes_of(setting: Setting) -> tuple[DetectorOutputs, DetectorOutputs]:
    """The shapes of the student's and of the teacher's outputs.

    Raises:
        ValueError: there is no teacher.
    """
    if setting.teacher_shapes is None:
        raise ValueError("the method needs a teacher, and there is none")
    return detected(setting.student_shapes), detected(setting.teacher_shapes)


def given(tensor: Tensor | None) -> Tensor:
    """The tensor, which is not ``None``: a feature that the stage names.

    Raises:
        ValueError: it is ``None``.
    """
    if tensor is None:
        raise ValueError("a detector did not give the class logits or labels that the method needs")
    return tensor
