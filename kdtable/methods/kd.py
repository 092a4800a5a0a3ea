"""KD: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.

With p = softmax(t / T) and q = softmax(s / T):

    KD = T^2 / B * sum over samples and classes of p (ln p - ln q)

The CRD benchmark runs it as 0.1 CE + 0.9 KD at T = 4. These weights belong to its table, not to the method.
"""

from kdtable.methods.base import Method
from kdtable.methods.soft_targets import kd_loss

__all__ = ["KD", "kd_loss"]


class KD(Method):
    """Soft targets: the KD term, which every method can use, beside cross-entropy."""

    combines_with_kd = False
    several_teachers = True
    one_view = ""

    @classmethod
    def standardises(cls) -> bool:
        """KD is the soft-target term itself."""
        return True
