"""The record of an epoch. Does not import torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdtable.recipes.metrics import Metric


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Measurements of one epoch of a run.

    Attributes:
        stage: name of the stage.
        epoch: within the stage, from 1.
        lr: learning rate.
        train_loss: mean of the weighted sum of the loss terms.
        metrics: measured by the task, by name; for classification "top1" and "top5" (accuracies on the test images in
            [0, 1]), "train-top1", "branch1-top1", "branch2-top1", ... of extra classifiers, and in the last epoch of
            the main stage what `kdtable.tasks.closing` measures. Where training images are held out for validation,
            every epoch has "validation-top1" and so on instead, and the last has what the test set measured once, with
            the weights of the epoch that `validated` chooses.
        terms: mean of each loss term over the epoch, by name.
        seconds: wall time, alongside its cohort.
        cohort_size: number of students that were trained together.
        waited: seconds, at most, that training waited for images to be decoded.
        cpu_seconds: CPU time of what was computed for this student alone, without the batches and the teacher passes
            that it shares; ``None`` on an accelerator and with several ranks.
        test_loss: loss on the test images, or on the held-out ones instead, in eval mode; ``None`` if it is not
            measured, or not finite.
    """

    stage: str
    epoch: int
    lr: float
    train_loss: float
    metrics: Mapping[str, float]
    terms: Mapping[str, float]
    seconds: float
    cohort_size: int
    waited: float = 0.0
    cpu_seconds: float | None = None
    test_loss: float | None = None


def validated(history: Iterable[EpochRecord], main: Metric) -> EpochRecord | None:
    """The main-stage epoch that held-out images choose: the latest of the best; ``None`` if none was measured on them.

    On few images equal accuracies are frequent, and of equally good students the one that trained longer is kept.
    """
    stored = main.on_validation().stored
    measured = [record for record in history if record.stage == "main" and stored in record.metrics]
    return max(reversed(measured), key=lambda record: main.goodness(record.metrics[stored]), default=None)
