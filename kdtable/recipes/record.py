"""What is recorded of one epoch. Free of torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What is measured of one epoch. Accuracies are shares in [0, 1]; ``seconds`` is wall time in company.

    ``waited`` is for how many of the seconds, at most, training waited for images to be decoded. ``branches`` has the
    test top-1 of each of the student's extra classifiers. ``test_loss`` is the epoch's loss on the test images in eval
    mode; ``None`` where it is not measured, or not finite.
    """

    stage: str
    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    test_top1: float
    test_top5: float
    seconds: float
    members: int
    terms: dict[str, float] = field(default_factory=dict)
    branches: tuple[float, ...] = ()
    waited: float = 0.0
    test_loss: float | None = None
