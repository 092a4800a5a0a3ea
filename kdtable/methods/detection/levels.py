"""FPN levels of two networks that are compared one by one."""

from kdtable.models.detection.outputs import DetectorOutputs


def unpaired_levels(student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
    """Why FPN levels cannot be compared one by one; ``None`` if they can be."""
    s, t = ([(level.shape[2], level.shape[3]) for level in outputs.levels] for outputs in (student, teacher))
    if len(s) != len(t):
        return f"the student's FPN has {len(s)} levels and the teacher's {len(t)}"
    for level, (a, b) in enumerate(zip(s, t, strict=True)):
        if a != b:
            sizes = f"{a[0]} x {a[1]} and the teacher's {b[0]} x {b[1]}"
            return f"both FPNs have other levels: at level {level} (from 0) the student's map is {sizes}"
    return None


def unequal_widths(student: DetectorOutputs, teacher: DetectorOutputs) -> str | None:
    """Why FPN levels cannot be compared channel by channel; ``None`` if they can be."""
    if reason := unpaired_levels(student, teacher):
        return reason
    s, t = student.levels[0].shape[1], teacher.levels[0].shape[1]
    if s == t:
        return None
    return f"it compares FPN levels of equal channels, and the student has {s}, the teacher {t}"
