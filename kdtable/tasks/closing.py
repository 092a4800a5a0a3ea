"""What is measured of a classifier once, at the end of its run: calibration, and likeness to its teacher."""

import math
from typing import Final

import torch
from torch.nn import functional as F

from kdtable.data.stream import Batch
from kdtable.distributed import Ranks
from kdtable.models.outputs import Outputs

#: Bins of the expected calibration error, of equal width.
BINS: Final = 15


class ClosingMeasures:
    """Measures on the test images; with p and q the student's and the teacher's softmax at temperature 1:

    - ``nll``: mean of -log p(label), in nats.
    - ``ece``: expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3): over the bins ((i - 1) / 15,
      i / 15] of the confidence max p, the mean of |accuracy - mean confidence|, weighted by images.
    - ``balanced``: mean of the accuracies of the classes that the test set has.
    - ``majority``: share of the most frequent class, which is the accuracy of always answering it.
    - ``agreement``: fraction of images on which student and teacher choose one class. Only with a teacher.
    - ``teacher-kl``: mean of KL(q || p), in nats. Only with a teacher.

    Args:
        num_classes: of the data set.
        dtype: of the sums.
        with_teacher: whether the student has a teacher.
    """

    def __init__(self, num_classes: int, dtype: torch.dtype, *, with_teacher: bool) -> None:
        self.with_teacher = with_teacher
        self._classes, self._dtype = num_classes, dtype
        self._sums = torch.zeros(4 + BINS + 2 * num_classes, dtype=dtype)

    @torch.no_grad()
    def update(self, outputs: Outputs, teacher: Outputs | None, batch: Batch) -> None:
        """Add the student's outputs for a batch, and the teacher's if there is one."""
        student = F.log_softmax(outputs.logits.to(self._dtype), dim=1)
        confidence, chosen = student.exp().max(dim=1)
        hits = chosen == batch.labels
        bins = F.one_hot((confidence * BINS).ceil().long().clamp(1, BINS) - 1, BINS).to(self._dtype)
        classes = F.one_hot(batch.labels, self._classes).to(self._dtype)
        likeness = torch.zeros(3, dtype=self._dtype, device=student.device)
        if self.with_teacher and teacher is not None:
            target = F.log_softmax(teacher.logits.to(self._dtype), dim=1)
            agreed = (target.argmax(dim=1) == chosen).to(self._dtype)
            likeness = torch.stack([agreed, (target.exp() * (target - student)).sum(dim=1), torch.ones_like(agreed)])
            likeness = likeness.sum(dim=1)
        parts = [
            likeness,
            -student.gather(1, batch.labels.unsqueeze(1)).sum(dim=0),
            (bins * (hits.to(self._dtype) - confidence).unsqueeze(1)).sum(dim=0),
            classes.sum(dim=0),
            classes[hits].sum(dim=0),
        ]
        self._sums = self._sums.to(student.device) + torch.cat(parts)

    def merge(self, ranks: Ranks) -> None:
        """Add the other ranks' sums."""
        self._sums = ranks.all_reduce(self._sums)

    def result(self) -> dict[str, float]:
        """The measures by stored name, without those that are not finite (0 / 0 without a teacher)."""
        sizes = [1, 1, 1, 1, BINS, self._classes, self._classes]
        agreed, divergence, compared, nll, gaps, count, hits = torch.split(self._sums.cpu(), sizes)
        images = count.sum()
        found = {
            "agreement": agreed / compared,
            "teacher-kl": divergence / compared,
            "nll": nll / images,
            "ece": gaps.abs().sum() / images,
            "balanced": (hits / count)[count > 0].mean(),
            "majority": count.max() / images,
        }
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}
