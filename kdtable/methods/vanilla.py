"""The student alone: cross-entropy on the labels, no teacher."""

from kdtable.methods.base import Method


class Vanilla(Method):
    """Cross-entropy; the baseline that every method is compared with."""

    combines_with_kd = False
