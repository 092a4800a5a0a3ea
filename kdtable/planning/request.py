"""What a user asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtable.data.spec import DataSpec
from kdtable.papers import DEFAULT_PAPER
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher

#: Gives the weights of a network for a data set, or says in a `BadRequest` how to get them.
FindTeacher = Callable[[str, DataSpec], FileTeacher | MissingTeacher]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for, in the user's words.

    Attributes:
        pairs: ``all``, names of tables, or TEACHER:STUDENT.
        methods: row names; where there are none, the rows of each table that a pair is of.
        seeds: the seeds themselves; the paper's where there are none.
        paper: whose recipe and rows are used.
        data: the data set; the paper's own where it is ``None``.
        epochs: total of the main stage; milestones move in proportion.
        batch_size: images per step.
        lr: learning rate of every student.
        settings: KEY=VALUE changes of recipe fields, weights (``weight.at``) and hyper-parameters (``tau``).
        precision: name of the precision.
        reading: ``code``, or another reading of the paper that it names.
        data_root: where ``imagenet`` and ``cub200`` are looked for when no folder is named.
        image_size: of the crops, where images come in many sizes.
        skip_unreadable: leave out images that cannot be read.
        devices: processes that train every run together.
        accumulate: parts of a process's share of a batch whose gradients are summed.
        sync_batch_norm: whether batch statistics are those of all processes' images.
        teacher_cache: ``fp32`` or ``fp16`` where the teacher's outputs are kept on disk, for runs that can use them.
    """

    pairs: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    paper: str = DEFAULT_PAPER
    data: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    overrides: Sequence[str] = ()
    precision: str = "fp32"
    reading: str = "code"
    teacher_cache: str = "off"
    data_root: Path | None = None
    image_size: int | None = None
    skip_unreadable: bool = False
    devices: int = 1
    accumulate: int = 1
    sync_batch_norm: bool = False
