"""A user's request, before it is resolved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtable.data.spec import DataSpec
from kdtable.papers import DEFAULT_PAPER
from kdtable.planning.run import WHOLE, Sharding
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher

#: Returns the weights of a network for a data set; raises a `BadRequest` that says how to get them.
FindTeacher = Callable[[str, DataSpec], FileTeacher | MissingTeacher]

#: Returns the weights that the user wants a network to start from on a data set; ``None`` for random ones.
FindStart = Callable[[str, DataSpec], FileTeacher | None]


@dataclass(frozen=True, slots=True)
class DataRequest:
    """The data set to train on.

    Attributes:
        name: as the user writes it; ``None`` for the paper's own.
        root: folder that holds ``imagenet``, ``cub200``, ``coco`` and ``voc`` where the name has no folder.
        image_size: size of the crops in pixels, where images have many sizes.
        skip_unreadable: whether to leave out images that cannot be read.
        validation: number of training images to hold out for validation; ``None`` for none.
    """

    name: str | None = None
    root: Path | None = None
    image_size: int | None = None
    skip_unreadable: bool = False
    validation: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes to the paper's recipe and settings.

    Attributes:
        epochs: epochs of the main stage; milestones move in proportion.
        batch_size: images per step.
        iterations: steps of the main stage; milestones and warm-up move in proportion.
        lr: learning rate of every student.
        overrides: KEY=VALUE changes of recipe fields, weights (``weight.at``) and hyper-parameters (``tau``).
        may_repeat: whether a change may state the value that is there, as one trial of a sweep may.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    overrides: Sequence[str] = ()
    may_repeat: bool = False
    iterations: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A user's request.

    Example:
        ``resolve(Request(["resnet56:resnet20"], ["kd", "crd"], [1, 2, 3]), find_teacher)``

    Attributes:
        pairs: ``all``, names of tables, or TEACHER:STUDENT.
        methods: row names; empty for the rows of each table.
        seeds: the seeds, at least one.
        paper: name of the paper whose recipe and rows are used.
        reading: ``code``, or another reading that the paper's file names.
        data: the data set.
        changes: of the recipe, of weights and of hyper-parameters.
        precision: name of the precision.
        teacher_cache: ``fp32`` or ``fp16`` to cache the teacher's outputs on disk, or ``off``.
        sharding: how each batch is divided over ranks and micro-batches.
    """

    pairs: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    paper: str = DEFAULT_PAPER
    reading: str = "code"
    data: DataRequest = DataRequest()
    changes: Changes = Changes()
    precision: str = "fp32"
    teacher_cache: str = "off"
    sharding: Sharding = WHOLE
