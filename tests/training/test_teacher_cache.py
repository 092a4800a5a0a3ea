"""A teacher's kept outputs: rows are whole or missing, and what was kept before changes no bit of any result."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdtable.data.stream import Batch
from kdtable.methods import METHODS, get
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads
from kdtable.planning.cohorts import CACHED_FEATURES, teacher_features
from kdtable.training import teacher_cache
from kdtable.training.cohort import Cohort
from kdtable.training.teacher import FrozenTeacher
from kdtable.training.teacher_cache import (
    CachedTeacher,
    RowFile,
    chunk_size,
    count_filled,
    file_bytes,
)
from tests import engine
from tests.training.test_promises import assert_same

ROWS, WIDTH = 200, 7
FP32, FP16 = np.dtype(np.float32), np.dtype(np.float16)
EMBEDDING = frozenset({"embedding"})
#: Of the engine's stream: crops of images padded by 4, mirrored.
VIEWS = 162


def numbers(ids: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """Rows that tell their ids; that of id 0 is all zeros."""
    return (ids[:, None] * np.arange(1, width + 1) / 8).astype(np.float32)


def opened(path: Path, dtype: np.dtype = FP32) -> RowFile:
    return RowFile(path, ROWS, WIDTH, dtype)


EVERY = np.arange(ROWS)


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("width", [1, 2, 4, 7, 64])
def test_rows_are_missing_until_they_are_written(tmp_path: Path, width: int, dtype: np.dtype) -> None:
    file = RowFile(tmp_path / "deep" / "rows.bin", ROWS, width, dtype)
    assert not file.read(EVERY)[1].any()
    some = np.array([0, 5, 199, 6])
    file.write(some, numbers(some, width))
    for reader in (file, RowFile(tmp_path / "deep" / "rows.bin", ROWS, width, dtype)):
        values, there = reader.read(EVERY)
        assert np.flatnonzero(there).tolist() == sorted(some)
        assert values.dtype == dtype
        assert np.array_equal(values[some], numbers(some, width).astype(dtype))
    path = tmp_path / "deep" / "rows.bin"
    assert path.stat().st_size == file_bytes(ROWS, width, dtype)
    assert count_filled(path, ROWS) == 4


def test_what_was_not_written_takes_no_disk(tmp_path: Path) -> None:
    rows = 1_000_000
    path = tmp_path / "rows.bin"
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 20)
    if (tmp_path / "hole").stat().st_blocks:
        pytest.skip("this file system has no holes")
    file = RowFile(path, rows, 100, FP32)
    ids = np.array([3, rows - 1])
    file.write(ids, numbers(ids, 100))
    assert path.stat().st_size == file_bytes(rows, 100, FP32) > 400 * rows
    assert path.stat().st_blocks * 512 < 1 << 20
    assert file.read(np.array([2, 3, rows - 1]))[1].tolist() == [False, True, True]


@given(row=st.integers(0, 5), byte=st.integers(0, 8 + 32 - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_makes_its_row_missing(row: int, byte: int, bit: int, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("flipped") / "rows.bin"
    file = RowFile(path, 6, 8, FP32)
    file.write(np.arange(6), numbers(np.arange(6), 8))
    place = row * 8 + byte if byte < 8 else 6 * 8 + row * 32 + byte - 8
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    there = RowFile(path, 6, 8, FP32).read(np.arange(6))[1]
    assert there.tolist() == [other != row for other in range(6)]


@given(both=st.lists(st.floats(width=32, allow_nan=False), min_size=16, max_size=16), cut=st.integers(0, 40))
def test_a_row_that_is_half_another_is_missing(both: list[float], cut: int, tmp_path_factory) -> None:
    """As a write that was cut short leaves it: old before ``cut`` or after it, new in the rest, its tag old or new."""
    folder = tmp_path_factory.mktemp("torn")
    old, new = np.array(both, FP32).reshape(2, 1, 8)
    for name, values in (("old.bin", old), ("new.bin", new)):
        RowFile(folder / name, 1, 8, FP32).write(np.array([0]), values)
    contents = [(folder / name).read_bytes() for name in ("old.bin", "new.bin")]
    mixed = contents[0][:cut] + contents[1][cut:]
    (folder / "mixed.bin").write_bytes(mixed)
    there = RowFile(folder / "mixed.bin", 1, 8, FP32).read(np.array([0]))[1]
    assert bool(there[0]) == (mixed in contents)


def test_a_row_in_another_place_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    file = RowFile(path, 2, 2, FP32)
    file.write(np.array([0]), numbers(np.array([1]), 2))
    content = path.read_bytes()
    path.write_bytes(content[8:16] + content[:8] + content[24:32] + content[16:24])
    assert not RowFile(path, 2, 2, FP32).read(np.array([0, 1]))[1].any()


@pytest.mark.parametrize(
    ("size", "whole"),
    [(0, []), (5, []), (8 * ROWS - 3, [0]), (8 * ROWS, [0]), (8 * ROWS + 32, [0]), (8 * ROWS + 70, [0, 1])],
)
def test_a_file_that_was_cut_short_lacks_rows(tmp_path: Path, size: int, whole: list[int]) -> None:
    """A row of zeros is the same as a hole: it is whole with its tag alone."""
    path = tmp_path / "rows.bin"
    opened(path).write(EVERY, numbers(EVERY))
    os.truncate(path, size)
    assert count_filled(path, ROWS) <= ROWS
    file = opened(path)
    values, there = file.read(EVERY)
    assert np.flatnonzero(there).tolist() == whole
    assert np.array_equal(values[whole], numbers(EVERY)[whole])
    file.write(EVERY, numbers(EVERY))
    values, there = file.read(EVERY)
    assert there.all()
    assert np.array_equal(values, numbers(EVERY))


def fill(path: Path, order: int) -> None:
    """Write every row again and again, some at a time, for ever."""
    file = opened(path)
    draw = np.random.default_rng(order)
    while True:
        ids = draw.permutation(ROWS)[:16]
        file.write(ids, numbers(ids))


def test_processes_that_fill_at_once_and_are_killed_leave_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=fill, args=(path, order)) for order in range(2)]
    try:
        for writer in writers:
            writer.start()
        while count_filled(path, ROWS) < ROWS:
            assert all(writer.is_alive() for writer in writers)
            time.sleep(0.01)
        file = opened(path)
        for _ in range(200):
            values, there = file.read(EVERY)
            assert np.array_equal(values[there], numbers(EVERY)[there])
    finally:
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    values, there = opened(path).read(EVERY)
    assert there.sum() >= ROWS - 2  # each may have been in the middle of one
    assert np.array_equal(values[there], numbers(EVERY)[there])


# --- the teacher -------------------------------------------------------------------------------------------------


class Counting:
    """A teacher that notes how many images each pass of another was over."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.teacher = teacher
        self.passes: list[int] = []

    def outputs(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        self.passes.append(len(batch.images))
        return self.teacher.outputs(batch, needs)


def cached(
    folder: Path, frozen: object, *, parts: tuple[str, ...] = ("logits", "embedding"), dtype: np.dtype = FP32, **more
) -> CachedTeacher:
    """A teacher of the engine's four classes with an embedding of 64 numbers, behind a cache in a folder."""
    widths = {"logits": 4, "embedding": 64}
    files = {part: RowFile(folder / f"{part}.bin", 60 * VIEWS, widths[part], dtype) for part in parts}
    return CachedTeacher(frozen, files, VIEWS, **{"note": pytest.fail, **more})


@pytest.fixture(scope="module")
def images() -> engine.ImageSet:
    return engine.image_set(train=60)


@pytest.fixture(scope="module")
def frozen(images: engine.ImageSet) -> FrozenTeacher:
    return FrozenTeacher(engine.teacher(images=images), engine.task(images))


def batches(images: engine.ImageSet, epoch: int = 1) -> list[Batch]:
    """Three of 16 images and one of 12."""
    return list(engine.task(images).batches("main", epoch))


def assert_same_outputs(a: Outputs, b: Outputs) -> None:
    assert torch.equal(a.logits, b.logits)
    assert a.logits.is_contiguous()
    assert (a.embedding is None) == (b.embedding is None)
    if a.embedding is not None:
        assert torch.equal(a.embedding, b.embedding)
        assert a.embedding.is_contiguous()
    assert (a.stem, a.stages, a.preacts) == (None, (), ())


def test_outputs_are_those_of_a_pass_over_a_chunk(images, frozen, tmp_path: Path) -> None:
    teacher = cached(tmp_path, frozen)
    (batch, *_, last) = batches(images)
    assert len(batch.labels) == chunk_size(torch.device("cpu"))
    for _ in range(2):
        assert_same_outputs(teacher.outputs(batch, EMBEDDING), frozen.outputs(batch, EMBEDDING))
        assert_same_outputs(teacher.outputs(batch, frozenset()), frozen.outputs(batch, frozenset()))
    outputs = teacher.outputs(last, EMBEDDING)
    torch.testing.assert_close(outputs.logits, frozen.outputs(last, EMBEDDING).logits)


def test_the_teacher_is_asked_for_what_is_missing_alone(images, frozen, tmp_path: Path) -> None:
    counting = Counting(frozen)
    teacher = cached(tmp_path, counting)
    first, second, *_ = batches(images)
    teacher.outputs(first, EMBEDDING)
    assert counting.passes == [16]
    teacher.outputs(first, EMBEDDING)
    assert counting.passes == [16]
    mixed = join(first, second)
    teacher.outputs(mixed, EMBEDDING)
    assert counting.passes == [16, 16]
    teacher.outputs(join(mixed, *batches(images)[2:]), EMBEDDING)
    assert counting.passes == [16, 16, 16, 16]
    cached(tmp_path, counting).outputs(mixed, EMBEDDING)
    assert len(counting.passes) == 4


def join(*parts: Batch) -> Batch:
    tensors = [torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "index")]
    return Batch(*tensors, 1, torch.cat([part.view for part in parts if part.view is not None]))


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_outputs_do_not_depend_on_what_was_there(images, frozen, tmp_path: Path, dtype: np.dtype) -> None:
    whole = join(*batches(images))
    expected = cached(tmp_path / "0", frozen, dtype=dtype).outputs(whole, EMBEDDING)
    draw = np.random.default_rng(0)
    for round_number in range(1, 6):
        teacher = cached(tmp_path / str(round_number), frozen, dtype=dtype)
        for part in np.array_split(draw.permutation(60), 4)[:3]:
            chosen = torch.from_numpy(part)
            some = Batch(*(t[chosen] for t in (whole.images, whole.labels, whole.index)), 1, whole.view[chosen])
            found = teacher.outputs(some, EMBEDDING)
            assert torch.equal(found.logits, expected.logits[chosen])
            assert torch.equal(found.embedding, expected.embedding[chosen])
        assert_same_outputs(teacher.outputs(whole, EMBEDDING), expected)


def test_half_precision_rounds_what_was_computed_just_now_too(images, frozen, tmp_path: Path) -> None:
    teacher = cached(tmp_path, frozen, dtype=FP16)
    batch = batches(images)[0]
    first = teacher.outputs(batch, EMBEDDING)
    exact = frozen.outputs(batch, EMBEDDING)
    assert torch.equal(first.logits, exact.logits.half().float())
    assert torch.equal(first.embedding, exact.embedding.half().float())
    assert not torch.equal(first.logits, exact.logits)
    assert_same_outputs(teacher.outputs(batch, EMBEDDING), first)


def test_an_embedding_is_kept_once_somebody_reads_it(images, frozen, tmp_path: Path) -> None:
    batch = batches(images)[0]
    counting = Counting(frozen)
    logits_only = cached(tmp_path, counting, parts=("logits",))
    assert_same_outputs(logits_only.outputs(batch, frozenset()), frozen.outputs(batch, frozenset()))
    assert [file.name for file in tmp_path.iterdir()] == ["logits.bin"]
    with pytest.raises(ValueError, match="no embedding"):
        logits_only.outputs(batch, EMBEDDING)
    both = cached(tmp_path, counting)
    assert_same_outputs(both.outputs(batch, frozenset()), frozen.outputs(batch, frozenset()))
    assert len(counting.passes) == 1
    assert_same_outputs(both.outputs(batch, EMBEDDING), frozen.outputs(batch, EMBEDDING))
    assert len(counting.passes) == 2


def test_test_images_are_computed_each_time(images, frozen, tmp_path: Path) -> None:
    counting = Counting(frozen)
    teacher = cached(tmp_path, counting)
    (batch,) = engine.task(images).evaluation_batches("test")
    for _ in range(2):
        assert_same_outputs(teacher.outputs(batch, EMBEDDING), frozen.outputs(batch, EMBEDDING))
    assert counting.passes == [len(batch.labels)] * 2


def test_what_is_not_kept_is_refused(images, frozen, tmp_path: Path) -> None:
    teacher = cached(tmp_path, frozen)
    batch = batches(images)[0]
    with pytest.raises(ValueError, match="no stages, stem"):
        teacher.outputs(batch, frozenset({"stages", "stem", "embedding"}))
    with pytest.raises(ValueError, match="view of each image"):
        teacher.outputs(Batch(batch.images, batch.labels, batch.index, 1), EMBEDDING)


class Loud:
    """A teacher whose logits no half-precision number can hold."""

    def outputs(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        return Outputs(torch.full((len(batch.images), 4), 1e5), embedding=torch.zeros(len(batch.images), 64))


def test_outputs_too_large_for_half_precision_are_refused(images, tmp_path: Path) -> None:
    batch = batches(images)[0]
    assert cached(tmp_path / "fp32", Loud()).outputs(batch, EMBEDDING).logits.unique().tolist() == [1e5]
    with pytest.raises(OverflowError, match="--teacher-cache fp32"):
        cached(tmp_path / "fp16", Loud(), dtype=FP16).outputs(batch, EMBEDDING)


def test_a_full_disk_is_told_once_and_costs_only_time(images, frozen, tmp_path: Path, monkeypatch) -> None:
    notes: list[str] = []
    counting = Counting(frozen)
    teacher = cached(tmp_path, counting, note=notes.append)
    first, second, *_ = batches(images)
    teacher.outputs(first, EMBEDDING)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_cache.os, "pwrite", full)
    for _ in range(2):
        assert_same_outputs(teacher.outputs(second, EMBEDDING), frozen.outputs(second, EMBEDDING))
        assert_same_outputs(teacher.outputs(first, EMBEDDING), frozen.outputs(first, EMBEDDING))
    assert len(counting.passes) == 3
    assert len(notes) == 1
    assert "No space left on device" in notes[0]


NETWORKS = ("resnet20_a", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_is_the_same_in_any_place_and_company_of_a_chunk(network: str, precision: str) -> None:
    """On which a cache rests: its rows are computed beside whatever else was missing."""
    fix_threads()
    size = chunk_size(torch.device("cpu"))
    images = engine.image_set(train=3 * size)
    task = engine.task(images, precision=precision)
    batch = join(*task.batches("main", 1))
    frozen = FrozenTeacher(settled(engine.teacher(network, images), batch), task)

    def passed(places: torch.Tensor) -> Outputs:
        chosen = batch.images[places].contiguous(memory_format=torch.channels_last)
        return frozen.outputs(Batch(chosen, batch.labels[places], batch.index[places], 1), EMBEDDING)

    parts = [passed(places) for places in torch.arange(3 * size).split(size)]
    logits, embedding = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "embedding"))
    assert len(logits.unique(dim=0)) == 3 * size
    draw = torch.Generator().manual_seed(0)
    companies = list(torch.randperm(3 * size, generator=draw).split(size))
    companies += [torch.full((size,), place) for place in (0, 17)]
    for places in companies:
        found = passed(places)
        assert torch.equal(found.logits, logits[places])
        assert torch.equal(found.embedding, embedding[places])


def settled(network: torch.nn.Module, batch: Batch) -> torch.nn.Module:
    """The network with batch norms as training leaves them: those of a batch."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(batch.images)
    return network.eval()


# --- training ----------------------------------------------------------------------------------------------------


def trained(folder: Path, frozen: object, images: engine.ImageSet, dtype: np.dtype, rows: tuple[str, ...]):
    task, sink = engine.task(images), engine.Sink()
    members = [engine.member(row, task, engine.teacher(images=images)) for row in rows]
    Cohort(task, cached(folder, frozen, dtype=dtype), members, sink, workers=2).train()
    assert not sink.failures
    return sink


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_training_with_a_cache_that_is_empty_half_full_or_full(images, frozen, tmp_path: Path, dtype) -> None:
    rows = ("kd", "crd+kd", "rkd")
    counting = Counting(frozen)
    empty = trained(tmp_path, counting, images, dtype, rows)
    asked = len(counting.passes)
    assert asked >= 3 * 4
    full = trained(tmp_path, counting, images, dtype, rows)
    asked += 1  # for the test images at the end, of which nothing is kept
    assert len(counting.passes) == asked
    for part in ("logits", "embedding"):
        file = tmp_path / f"{part}.bin"
        content = bytearray(file.read_bytes())
        content[: 8 * 30 * VIEWS] = bytes(8 * 30 * VIEWS)  # the tags of half of the images
        file.write_bytes(content)
    half = trained(tmp_path, counting, images, dtype, rows)
    assert asked + 1 < len(counting.passes)
    alone = trained(tmp_path, counting, images, dtype, ("crd+kd",))
    for key, state in empty.states.items():
        assert_same(state, full.states[key])
        assert_same(state, half.states[key])
    for key, state in alone.states.items():
        assert_same(state, empty.states[key])


@pytest.mark.parametrize("row", [*METHODS, "crd+kd", "ft+kd"])
def test_what_a_method_declares_is_what_its_stages_read(row: str) -> None:
    stages = engine.member(row, engine.task(), engine.teacher_of(row)).stages
    assert frozenset().union(*(stage.teacher_features for stage in stages)) == teacher_features(get(row))
    if teacher_features(get(row)) <= CACHED_FEATURES:
        assert {stage.teacher_mode for stage in stages} == {"eval"}
