"""The student alone: cross-entropy on the labels, no teacher."""

from kdtable.methods.base import Method


class Vanilla(Method):
    """Cross-entropy: the baseline of every comparison."""

    combines_with_kd = False
    one_view = ""
