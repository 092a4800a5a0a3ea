"""What a user asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtable.data.spec import DataSpec
from kdtable.papers import DEFAULT_PAPER
from kdtable.planning.run import WHOLE, Sharding
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher

#: Gives the weights of a network for a data set, or says in a `BadRequest` how to get them.
FindTeacher = Callable[[str, DataSpec], FileTeacher | MissingTeacher]


@dataclass(frozen=True, slots=True)
class DataRequest:
    """Which data set is trained on.

    Attributes:
        name: as the user writes it; the paper's own where it is ``None``.
        root: where ``imagenet`` and ``cub200`` are looked for when no folder is named.
        image_size: of the crops, where images come in many sizes.
        skip_unreadable: leave out images that cannot be read.
    """

    name: str | None = None
    root: Path | None = None
    image_size: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What is not as the paper has it.

    Attributes:
        epochs: total of the main stage; milestones move in proportion.
        batch_size: images per step.
        lr: learning rate of every student.
        overrides: KEY=VALUE changes of recipe fields, weights (``weight.at``) and hyper-parameters (``tau``).
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for, in the user's words.

    Attributes:
        pairs: ``all``, names of tables, or TEACHER:STUDENT.
        methods: row names; where there are none, the rows of each table that a pair is of.
        seeds: the seeds themselves; the paper's where there are none.
        paper: whose recipe and rows are used.
        reading: ``code``, or another reading of the paper that it names.
        data: the data set.
        changes: of the recipe, of weights and of hyper-parameters.
        precision: name of the precision.
        teacher_cache: ``fp32`` or ``fp16`` where the teacher's outputs are kept on disk, for runs that can use them.
        sharding: how batches are taken apart.
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
