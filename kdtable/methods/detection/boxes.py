"""Whether two detectors can judge the same boxes."""

from kdtable.models.detection.outputs import DetectorOutputs


def other_boxes(student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
    """Why two detectors cannot judge the same boxes; ``None`` if they can."""
    if student.dense == teacher.dense:
        return None
    if student.dense:
        return "the student is a RetinaNet, which proposes no boxes for the teacher's RoI heads"
    return "the teacher is a RetinaNet, which has no RoI heads to judge the student's proposals"
