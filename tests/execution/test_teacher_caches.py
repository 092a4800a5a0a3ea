"""Where kept outputs lie, what their place depends on, and how much disk they take."""

import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdtable.data.spec import BUILT_IN, DataSpec
from kdtable.errors import BadRequest
from kdtable.execution import teacher_caches
from kdtable.execution.teacher_caches import (
    TeacherCache,
    cache_of,
    caches_of,
    check_room,
)
from kdtable.planning.cohorts import CohortPlan, cohorts, missing
from kdtable.planning.request import Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import FileTeacher
from tests.asking import asked

CPU = torch.device("cpu")
#: Of CIFAR-100 for a teacher with an embedding of 64 numbers.
VIEWS = 50_000 * 162


@pytest.fixture
def teacher(tmp_path: Path) -> FileTeacher:
    data = BUILT_IN["cifar100"]
    return FileTeacher("resnet56", data.mean, data.std, "a" * 64, tmp_path / "cifar100" / "resnet56.pth")


def planned(teacher: FileTeacher, **changes: Any) -> list[CohortPlan]:
    request = Request(["resnet56:resnet20"], ["kd"], [1], teacher_cache="fp32")
    return cohorts(missing(resolve(asked(request, **changes), lambda *_: teacher), {}))


def only(teacher: FileTeacher, **changes: Any) -> TeacherCache:
    (found,) = caches_of(planned(teacher, **changes), CPU)
    return found


def test_sizes_of_cifar_100(teacher: FileTeacher) -> None:
    """3.2 GB of logits in fp32, half of it in fp16, and the tags."""
    assert only(teacher).full_bytes == VIEWS * (4 * 100 + 8)
    assert only(teacher, teacher_cache="fp16").full_bytes == VIEWS * (2 * 100 + 8)
    assert only(teacher, methods=["crd"]).full_bytes == VIEWS * (4 * (100 + 64) + 16)
    assert only(teacher, overrides=["crop_padding=0"]).full_bytes == 50_000 * 2 * (4 * 100 + 8)
    assert (only(teacher).disk_bytes, only(teacher).filled("logits")) == (0, 0)


def test_the_rows_of_a_request_share_a_cache(teacher: FileTeacher) -> None:
    rows = ["vanilla", "kd", "at", "crd", "rkd+kd"]
    assert only(teacher, methods=rows, seeds=[1, 2]).widths == {"logits": 100, "embedding": 64}
    assert only(teacher, methods=rows).folder == only(teacher).folder
    assert caches_of(planned(teacher, methods=["vanilla", "at"]), CPU) == []
    assert caches_of(planned(teacher, teacher_cache="off"), CPU) == []


def test_students_without_a_teacher_do_not_matter(teacher: FileTeacher) -> None:
    (cohort,) = planned(teacher, methods=["vanilla", "kd"])
    assert cohort.runs[0].teacher is None
    assert cache_of(cohort, CPU) == only(teacher)
    assert cache_of(replace(cohort, runs=cohort.runs[:1]), CPU) is None


def place(run: Run, **changes: Any) -> Path:
    (cohort,) = cohorts([replace(run, **changes)])
    found = cache_of(cohort, CPU)
    assert found is not None
    return found.folder


def test_the_place_depends_on_what_the_outputs_depend_on(teacher: FileTeacher) -> None:
    run = planned(teacher)[0].runs[0]
    data: DataSpec = run.data
    changed = [
        {"teacher": replace(teacher, sha256="b" * 64)},
        {"teacher": replace(teacher, network="resnet110")},
        {"teacher": replace(teacher, mean=(0.5, 0.5, 0.5))},
        {"teacher": replace(teacher, std=(0.5, 0.5, 0.5))},
        {"data": BUILT_IN["cifar10"]},
        {"data": replace(data, kind="npz", sha256="c" * 64)},
        {"data": replace(data, flip=False)},
        {"recipe": replace(run.recipe, crop_padding=3)},
        {"recipe": replace(run.recipe, crop_fill="reflect")},
        {"precision": "fp32-cached16"},
        {"precision": "bf16-cached"},
    ]
    places = [place(run), *(place(run, **change) for change in changed)]
    assert len(set(places)) == len(places)
    assert {folder.parent for folder in places} == {teacher.path.parent / "views"}


def test_the_place_depends_on_nothing_else(teacher: FileTeacher) -> None:
    run = planned(teacher)[0].runs[0]
    for change in [
        {"seed": 9},
        {"student": "resnet8"},
        {"row": "crd"},
        {"recipe": replace(run.recipe, batch_size=32, lr=0.1, epochs=3)},
        {"objective": replace(run.objective, terms={"ce": 1.0, "kd": 1.0})},
        {"teacher": replace(teacher, run="0123456789abcdef", claimed_top1=70.0)},
    ]:
        assert place(run, **change) == place(run)


def test_other_arithmetic_is_another_place(teacher: FileTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    before = only(teacher).folder
    fingerprint = teacher_caches.fingerprint
    monkeypatch.setattr(teacher_caches, "fingerprint", lambda device: fingerprint(device) | {"torch": "1.0"})
    other_torch = only(teacher).folder
    monkeypatch.setattr(teacher_caches, "fingerprint", fingerprint)
    monkeypatch.setattr(teacher_caches, "chunk_size", lambda device: 32)
    assert len({before, other_torch, only(teacher).folder}) == 3


class Constant:
    """A teacher of few numbers."""

    def outputs(self, batch: Any, needs: frozenset[str]) -> Any:
        raise AssertionError("not asked")


@pytest.fixture
def small(teacher: FileTeacher) -> TeacherCache:
    """For 160 views."""
    return replace(only(teacher, methods=["crd"]), images=80, views=2)


def test_a_cache_in_use(small: TeacherCache) -> None:
    small.before(Constant(), pytest.fail)
    assert sorted(file.name for file in small.folder.glob("[!.]*")) == ["about.json", "embedding.bin", "logits.bin"]
    about = json.loads((small.folder / "about.json").read_text())
    assert (about["images"], about["views"], about["teacher"]["network"]) == (80, 2, "resnet56")
    assert "May be deleted" in about["what"]
    assert small.full_bytes == sum(file.stat().st_size for file in small.folder.glob("*.bin"))
    assert (small.filled("logits"), small.filled("embedding")) == (0, 0)
    file = teacher_caches.RowFile(small.file("logits"), small.rows, 100, np.dtype(np.float32))
    file.write(np.arange(40), np.ones((40, 100)))
    assert (small.filled("logits"), small.filled("embedding")) == (40, 0)
    assert 0 < small.disk_bytes <= small.full_bytes


def test_a_name_that_is_taken_by_a_file_is_refused(small: TeacherCache) -> None:
    small.folder.parent.mkdir(parents=True)
    small.folder.touch()
    with pytest.raises(BadRequest, match=r"cannot be written to .*--teacher"):
        small.before(Constant(), pytest.fail)


def test_a_folder_that_may_not_be_written_to_is_refused(small: TeacherCache, monkeypatch: pytest.MonkeyPatch) -> None:
    small.folder.parent.mkdir(parents=True)
    check_room([small])
    monkeypatch.setattr(os, "access", lambda path, mode: path != small.folder.parent)
    with pytest.raises(BadRequest, match=r"cannot be written to \(no permission\)"):
        check_room([small])


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_does_not_hold_what_is_missing(small: TeacherCache, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(small, identity={**small.identity, "format": 0})
    need = small.full_bytes

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, count))

    free(2 * need)
    check_room([small, other])
    free(2 * need - 1)
    check_room([small])
    with pytest.raises(BadRequest, match=rf"{2 * need:,} bytes more .* {2 * need - 1:,} free.*fp16"):
        check_room([small, other])
    small.before(Constant(), pytest.fail)
    for part, width in small.widths.items():
        file = teacher_caches.RowFile(small.file(part), small.rows, width, np.dtype(np.float32))
        file.write(np.arange(small.rows), np.ones((small.rows, width)))
    free(need)
    check_room([small, other])


def test_endless_views_are_refused(teacher: FileTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_caches, "views_of", lambda run: None)
    with pytest.raises(BadRequest, match=r"cifar100 are cropped in endlessly many ways.*leave out --teacher-cache"):
        caches_of(planned(teacher), CPU)
    assert caches_of(planned(teacher, teacher_cache="off"), CPU) == []
