"""The detector alone: its own losses, no teacher."""

from kdtable.methods.detection.base import DetectorMethod


class Vanilla(DetectorMethod):
    """The detector's own losses: the baseline of every comparison."""
