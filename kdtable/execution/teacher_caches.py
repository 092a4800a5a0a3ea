"""The teacher caches of a plan: their folders, their identity, and the disk that they take."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from kdtable import tasks
from kdtable.data.stream import count_views
from kdtable.errors import BadRequest
from kdtable.files.atomic import locked, written_whole
from kdtable.numerics.layout import fingerprint
from kdtable.numerics.names import split_precision
from kdtable.planning.code import network_code
from kdtable.planning.cohorts import CohortPlan, teacher_features
from kdtable.planning.run import Run, digest
from kdtable.planning.teacher_refs import FileTeacher, MissingTeacher, RunTeacher, SeveralTeachers
from kdtable.training.build import network_shapes
from kdtable.training.teacher import Teacher
from kdtable.training.teacher_cache import (
    DTYPES,
    CachedTeacher,
    RowFile,
    chunk_size,
    count_filled,
    file_bytes,
)

#: To be raised when the file layout or the numbering of views changes.
FORMAT: Final = 1

ABOUT: Final = "about.json"


@dataclass(frozen=True, slots=True)
class TeacherCache:
    """The cached outputs of one teacher for the views of one data set.

    Attributes:
        teacher: the teacher.
        identity: all that the stored numbers depend on.
        images: number of training images.
        views: number of views of each image.
        widths: numbers in a row of each file: "logits", and "embedding" where a method reads it.
        held: name of the stored type.
    """

    teacher: FileTeacher | MissingTeacher
    identity: Mapping[str, Any]
    images: int
    views: int
    widths: Mapping[str, int]
    held: str

    @property
    def folder(self) -> Path:
        """The cache's folder, beside the teacher's file; each identity has its own."""
        assert isinstance(self.teacher, FileTeacher)
        return self.teacher.path.parent / "views" / digest(self.identity)

    @property
    def rows(self) -> int:
        """Number of views of all images."""
        return self.images * self.views

    @property
    def full_bytes(self) -> int:
        """Size of the full files, in bytes."""
        return sum(self._full_bytes(part) for part in self.widths)

    @property
    def disk_bytes(self) -> int:
        """Bytes that the files take on disk now; sparse files take less than their full size."""
        files = {part: self.file(part) for part in self.widths}
        there = [(part, file.stat().st_blocks * 512) for part, file in files.items() if file.exists()]
        return sum(min(blocks, self._full_bytes(part)) for part, blocks in there)

    def file(self, part: str) -> Path:
        """Path of the rows of "logits" or "embedding"."""
        return self.folder / f"{part}.bin"

    def filled(self, part: str) -> int:
        """Number of stored rows."""
        return count_filled(self.file(part), self.rows)

    def before(self, frozen: Teacher, note: Callable[[str], None]) -> CachedTeacher:
        """Put the cache before ``frozen``, which computes missing rows; ``note`` gets a message if writing fails.

        Raises:
            BadRequest: the folder beside the teacher cannot be written to.
        """
        try:
            if not (self.folder / ABOUT).exists():
                with locked(self.folder.parent / ".lock"), written_whole(self.folder / ABOUT, alone=True) as file:
                    file.write(json.dumps(self._about(), indent=2).encode())
            dtype = DTYPES[self.held]
            files = {part: RowFile(self.file(part), self.rows, width, dtype) for part, width in self.widths.items()}
        except OSError as error:
            raise self._unwritable(str(error.strerror)) from error
        return CachedTeacher(frozen, files, self.views, note)

    def check_writable(self) -> None:
        """Raise `BadRequest` if the folder beside the teacher cannot be written to."""
        if not os.access(existing(self.folder), os.W_OK):
            raise self._unwritable("no permission")

    def _unwritable(self, why: str) -> BadRequest:
        return BadRequest(
            f"the teacher's cache {self.folder} cannot be written to ({why}): name a copy of the teacher in a folder "
            "of yours with --teacher, or leave out --teacher-cache"
        )

    def _full_bytes(self, part: str) -> int:
        return file_bytes(self.rows, self.widths[part], DTYPES[self.held])

    def _about(self) -> dict[str, Any]:
        words = "A teacher's outputs for each view (crop and mirroring) of each training image. May be deleted."
        layout = (
            "a tag of 8 bytes per row (0: missing), then the rows, padded to 8 bytes; row = image * views + view; "
            "view = top * places + left of the crop, where images are mirrored too times 2, plus 1 if it is mirrored"
        )
        return {"what": words, "layout": layout, "images": self.images, "views": self.views, **self.identity}


def views_of(run: Run) -> int | None:
    """Number of possible views of an image in the run's batches; ``None`` if unlimited."""
    return None if run.data.streamed else count_views(run.recipe.crop_padding, run.data.flip)


def caches_of(cohorts: Iterable[CohortPlan], device: torch.device) -> list[TeacherCache]:
    """The caches that cohorts use, each once.

    Raises:
        BadRequest: an image has no finite number of views.
    """
    found: dict[tuple[object, str], TeacherCache] = {}
    for cache in filter(None, (cache_of(cohort, device) for cohort in cohorts)):
        key = (cache.teacher, digest(cache.identity))
        known = found.setdefault(key, cache)
        found[key] = replace(known, widths={**known.widths, **cache.widths})
    return list(found.values())


def cache_of(cohort: CohortPlan, device: torch.device) -> TeacherCache | None:
    """The teacher cache of a cohort; ``None`` if it uses none.

    Raises:
        BadRequest: an image has no finite number of views.
    """
    users = [run for run in cohort.runs if run.teacher_cache != "off"]
    if not users or cohort.teacher is None or isinstance(cohort.teacher, RunTeacher | SeveralTeachers):
        return None
    run, teacher = users[0], cohort.teacher
    views = views_of(run)
    if views is None:
        raise BadRequest(
            f"images of {run.data.name} are cropped in endlessly many ways, so a teacher's outputs for them cannot be "
            "kept: leave out --teacher-cache"
        )
    shapes = network_shapes(teacher.network, run.data.num_classes, run.data.image_size, tasks.get(run.task))
    parts = ["logits", *sorted(frozenset().union(*(teacher_features(run.method) for run in users)))]
    return TeacherCache(
        teacher=teacher,
        identity=_identity(run, teacher, device),
        images=run.data.train_count,
        views=views,
        widths={part: getattr(shapes, part).shape[1] for part in parts},
        held=run.teacher_cache,
    )


def _identity(run: Run, teacher: FileTeacher | MissingTeacher, device: torch.device) -> dict[str, Any]:
    network = {key: value for key, value in teacher.identity().items() if key != "run"}
    return {
        "format": FORMAT,
        "code": network_code(teacher.network),
        "teacher": network | {"sha256": teacher.sha256},
        "data": run.data.identity(),
        "crops": {"padding": run.recipe.crop_padding, "fill": run.recipe.crop_fill, "mirrored": run.data.flip},
        "precision": split_precision(run.precision)[0],
        "dtype": run.teacher_cache,
        "images_per_pass": chunk_size(device),
        "numerics": fingerprint(device),
    }


def check_room(caches: Iterable[TeacherCache]) -> None:
    """Check that the missing rows of all caches fit on their disks.

    Raises:
        BadRequest: they do not, or a folder cannot be written to.
    """
    disks: dict[int, list[TeacherCache]] = {}
    for cache in caches:
        cache.check_writable()
        disks.setdefault(existing(cache.folder).stat().st_dev, []).append(cache)
    for on_disk in disks.values():
        lacking = sum(cache.full_bytes - cache.disk_bytes for cache in on_disk)
        free = free_bytes(on_disk[0].folder)
        if lacking > free:
            raise BadRequest(
                f"the teachers' outputs may take {lacking:,} bytes more in {on_disk[0].folder.parent}, and its disk "
                f"has {free:,} free: make room, keep them in half precision with --teacher-cache fp16, or leave it out"
            )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which may not exist yet."""
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next(path for path in (folder, *folder.parents) if path.exists())
