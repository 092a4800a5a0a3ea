"""Linear probes: how well a classifier on a student's frozen trunk tells the classes of any data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from kdtable import data as data_sets
from kdtable import tasks
from kdtable.checkpoints import student
from kdtable.checkpoints.student import Origin
from kdtable.data.names import RESIZED, resolve, spelled
from kdtable.data.sets import Images, ImageSet
from kdtable.data.spec import DataSpec, check_batch_size
from kdtable.errors import BadRequest
from kdtable.methods import get
from kdtable.methods.objective import PRETRAIN, Objective
from kdtable.models.network import Network
from kdtable.numerics.precision import Precision
from kdtable.recipes.metrics import TRANSFER, Metric
from kdtable.recipes.recipe import Recipe
from kdtable.recipes.record import EpochRecord
from kdtable.store import RunRecord, Store
from kdtable.training.build import build_member, build_teacher
from kdtable.training.cohort import Cohort
from kdtable.training.member import Member

TASK = "self-supervised"

#: Settings of the probes that tables show, so that only equal ones are averaged.
EPOCHS: Final = 100
LR: Final = 1.0
BATCH: Final = 256
SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe of a student.

    Attributes:
        origin: of the student.
        data: name of the data set.
        images: number of its test images.
        kind: of the data set.
        settings: epochs, learning rate, batch size as it was asked for, and seed.
        history: the probe's epochs; their metrics are ``probe-top1``, ``probe-top5`` and ``knn``.
    """

    origin: Origin
    data: str
    images: int
    kind: str
    settings: tuple[int, float, int, int]
    history: Sequence[EpochRecord]

    @property
    def unlike_tables(self) -> str | None:
        """Why tables cannot show it, in one clause; ``None`` if they can."""
        if self.kind not in TRANSFER:
            return f"tables have probes on {', '.join(TRANSFER)}"
        if self.settings != (EPOCHS, LR, BATCH, SEED):
            return f"tables have probes of {EPOCHS} epochs, lr {LR:g}, batch {BATCH}, seed {SEED}"
        return None

    def keep(self, store: Store, run: RunRecord) -> Metric:
        """Store the accuracy of a probe that tables can show with its run's result; return the metric's description."""
        metric = TRANSFER[self.kind]
        store.record_probe(run.id, {metric.stored: self.history[-1].metrics["probe-top1"]})
        return metric


def probe(
    path: Path,
    data: str,
    data_root: Path,
    device: torch.device,
    *,
    epochs: int = EPOCHS,
    lr: float = LR,
    batch_size: int = BATCH,
    seed: int = SEED,
    image_size: int | None = None,
    progress: Callable[[EpochRecord], None] = lambda _: None,
) -> Probed:
    """Train a linear classifier on the frozen trunk of the student in ``path``.

    Args:
        path: a student's file.
        data: name of a data set, as on the command line.
        data_root: where data sets are.
        device: to train on.
        epochs: of the probe; its rate falls to a tenth after 60 % and 80 % of them.
        lr: its learning rate.
        batch_size: images per step; at most the whole training set.
        seed: of the classifier and the batches.
        image_size: what the images of a set in memory are scaled to.
        progress: called after every epoch.

    Raises:
        BadRequest: the data set cannot be read, or its images are of another size than the student's.
    """
    if epochs < 1 or not lr > 0:
        raise BadRequest("a probe takes 1 epoch or more, and a positive learning rate")
    tensors, origin = student.load(path)
    images = _images(data, data_root, origin, image_size)
    recipe = Recipe(epochs, min(batch_size, images.spec.train_count), lr, ())
    check_batch_size(images.spec, recipe.batch_size)
    kind, task = get("vanilla", TASK), tasks.get(TASK)(images, recipe, seed, Precision("fp32", device))
    objective = Objective.of(
        kind.hyper, {"ce": 1.0}, {"probe_lr": float(lr)}, stage_epochs={"main": epochs, PRETRAIN: 0}
    )
    network = _with_classes(tensors, origin, images.spec.num_classes)
    member = build_member("probe", kind, objective, recipe, student=network, teacher=None, task=task)
    Cohort(task, None, [member], _Sink(progress)).train()
    settings = epochs, lr, batch_size, seed
    return Probed(origin, images.spec.name, images.spec.test_count, images.spec.kind, settings, member.history)


class _Sink:
    """Passes epochs on, and errors up."""

    def __init__(self, progress: Callable[[EpochRecord], None]) -> None:
        self._progress = progress

    def stepped(self, members: Sequence[Member], images: int) -> None:
        """Note nothing."""

    def epoch_done(self, member: Member, record: EpochRecord) -> None:
        """Tell of an epoch."""
        self._progress(record)

    def failed(self, run_id: str, error: BaseException) -> None:
        """Raise what ended the probe."""
        raise BadRequest(f"the probe failed ({error}): use a lower --lr") from error


def _images(data: str, root: Path, origin: Origin, size: int | None) -> Images:
    kind = spelled(data).partition(":")[0]
    decoded = kind in RESIZED  # scaled when they are read
    spec = resolve(data, size if decoded else None)
    if spec.streamed:
        spec = resolve(data, size or origin.image_size)
    images = data_sets.load(spec, root)
    if size is not None and isinstance(images, ImageSet) and not decoded:
        images = _scaled(images, size)
    if images.spec.image_size != origin.image_size:
        raise BadRequest(
            f"images of {data} are {images.spec.image_size} pixels wide, but the student was trained on "
            f"{origin.image_size}: add --image-size {origin.image_size} to have them scaled"
        )
    return images


def _scaled(images: ImageSet, size: int) -> ImageSet:
    """A set whose images are scaled bilinearly, without aliases."""
    spec: DataSpec = replace(images.spec, image_size=size)
    train, test = (_smaller(part, size) for part in (images.train_images, images.test_images))
    return replace(images, spec=spec, train_images=train, test_images=test)


def _smaller(images: Tensor, size: int) -> Tensor:
    parts = (
        F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255)
        for part in torch.split(images, 1024)
    )
    return torch.cat([part.to(torch.uint8) for part in parts])


def _with_classes(tensors: dict[str, Tensor], origin: Origin, classes: int) -> Network:
    """The student with a new classifier; extra classifiers for other classes keep random weights."""
    network = build_teacher(origin.network, classes, origin.mean, origin.std, origin.image_size)
    own = network.state_dict()
    layer = {id(parameter) for parameter in network.linear_classifier().parameters()}
    new = {name for name, parameter in network.named_parameters() if id(parameter) in layer}
    kept = {key: value for key, value in tensors.items() if key not in new and value.shape == own[key].shape}
    network.load_state_dict(own | kept)
    return network
