"""Cache a frozen teacher's outputs on disk, one row for each view of each image.

In eval mode a teacher's logits and embedding depend only on the image and its view (crop and mirroring), so later
epochs, seeds, methods and students can reuse them.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from kdtable.data.stream import Batch
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import LAYOUT
from kdtable.tasks.base import Task
from kdtable.training.teacher import Teacher

Ids = NDArray[np.int64]
Words = NDArray[np.uint64]
Numbers = NDArray[Any]

#: Stored types by name.
DTYPES: Final[dict[str, np.dtype[Any]]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}

_TAG_BYTES: Final = 8
# Fibonacci hashing's multiplier (the golden ratio). It is odd, so multiplying by it loses no bit.
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)


class RowFile:
    """Rows of numbers in a file, each complete or missing.

    The file holds one tag per row, then the rows. A row is valid only if its tag is the hash of its index and its
    bits: a row that was never written, half written by a killed process, or damaged counts as missing. On file systems
    with sparse files, missing rows take no disk. Several processes may read and write at once; they write the same
    bits.

    Args:
        path: the file; created with its folder if missing.
        rows: number of rows.
        width: numbers in a row.
        dtype: type of the numbers.

    Raises:
        OSError: the file cannot be created or written to.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._path, self._width = path, width
        size, words = file_bytes(rows, width, dtype), _words(width, dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() < size:
                file.truncate(size)
        # Read through a memory map, but write with plain writes: on a full disk these raise an error, where writing
        # to a map kills the process.
        self._start = rows * _TAG_BYTES
        self._tags = np.memmap(path, np.uint64, "r", shape=(rows,))
        self._rows = np.memmap(path, np.uint64, "r", offset=self._start, shape=(rows, words))

    def read(self, ids: Ids) -> tuple[Numbers, NDArray[np.bool_]]:
        """Rows ``ids`` (n,) as (n, width), and a mask (n,) of those that are valid; the others hold anything."""
        tags = np.asarray(self._tags[ids])
        words = np.zeros((len(ids), self._rows.shape[1]), np.uint64)
        written = np.flatnonzero(tags)  # reading a hole would fill memory with its zeros
        words[written] = self._rows[ids[written]]
        return words.view(self.dtype)[:, : self._width], tags == _tags_of(ids, words)

    def write(self, ids: Ids, values: Numbers) -> None:
        """Write ``values`` (n, width) as rows ``ids`` (n,).

        Raises:
            OSError: the disk is full, or the file is gone.
        """
        words = np.zeros((len(ids), self._rows.shape[1]), np.uint64)
        words.view(self.dtype)[:, : self._width] = values
        tags = _tags_of(ids, words)
        with self._path.open("r+b", buffering=0) as file:
            for i, row in enumerate(ids.tolist()):
                os.pwrite(file.fileno(), words[i].data, self._start + row * words[i].nbytes)
                os.pwrite(file.fileno(), tags[i : i + 1].data, row * _TAG_BYTES)


def file_bytes(rows: int, width: int, dtype: np.dtype[Any]) -> int:
    """Size of a full :class:`RowFile`, in bytes."""
    return rows * (_TAG_BYTES + 8 * _words(width, dtype))


def count_filled(path: Path, rows: int) -> int:
    """Number of rows with a tag; 0 if there is no file."""
    return int(np.count_nonzero(np.fromfile(path, np.uint64, rows))) if path.exists() else 0


def _words(width: int, dtype: np.dtype[Any]) -> int:
    """Number of 8-byte words in a row."""
    return -(-width * dtype.itemsize // 8)


def _tags_of(ids: Ids, words: Words) -> Words:
    """Hashes (n,) of rows ``words`` (n, words): never 0, and different after any change within one word."""
    factors = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * _ODD
    mixed = (words ^ (words >> np.uint64(32))) * factors
    total = (mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64)
    total += (ids.astype(np.uint64) + np.uint64(1)) * _ODD
    total = (total ^ (total >> np.uint64(32))) * _ODD
    total ^= total >> np.uint64(29)
    tags: Words = np.maximum(total, np.uint64(1))
    return tags


def chunk_size(device: torch.device) -> int:
    """Number of images in each pass of a cached teacher.

    It is fixed, because the last bits of an output can depend on how many images are computed at once (but not on
    which, nor on their order). On a CPU four passes over 16 images take as long as one over 64, and waste less when
    few views of a batch are missing. An accelerator needs more images to be busy.
    """
    return 16 if device.type == "cpu" else 64


class CachedTeacher:
    """A teacher that computes only the outputs that its cache lacks.

    Args:
        frozen: the teacher itself, in eval mode.
        files: "logits" and, where a method reads it, "embedding"; row = image * views + view.
        views: number of views of an image in the batch stream.
        note: called once with a message when a file can no longer be written to; training goes on.
    """

    def __init__(self, frozen: Teacher, files: Mapping[str, RowFile], views: int, note: Callable[[str], None]) -> None:
        self._frozen = frozen
        self._files = files
        self._views = views
        self._note = note
        self._writable = True

    def outputs(self, batch: Batch, needs: frozenset[str]) -> Outputs:
        """Logits, and the embedding if ``needs`` names it, in float32, rounded to the stored type.

        Test images have no views, so they are computed each time.

        Raises:
            ValueError: ``needs`` names a feature without a file, or the batch does not say its views.
            OverflowError: an output is too large for the stored type.
        """
        if not needs <= self._files.keys():
            raise ValueError(f"the teacher's cache has no {', '.join(sorted(needs - self._files.keys()))}")
        if batch.epoch == 0:
            outputs: Outputs = self._frozen.outputs(batch, needs)
            return outputs
        if batch.view is None:
            raise ValueError("the teacher's cache needs to know the view of each image")
        ids = (batch.index * self._views + batch.view).cpu().numpy()
        found = {part: self._files[part].read(ids) for part in ("logits", *needs)}
        missing = np.flatnonzero(~np.logical_and.reduce([valid for _, valid in found.values()]))
        if len(missing):
            for part, computed in self._computed(batch, missing, found).items():
                found[part][0][missing] = computed
                self._store(part, ids[missing], computed)
        tensors = {
            part: torch.from_numpy(rows.astype(np.float32)).to(batch.images.device) for part, (rows, _) in found.items()
        }
        return Outputs(tensors["logits"], embedding=tensors.get("embedding"))

    def in_train_mode(self) -> Teacher:
        """See :class:`~kdtable.training.teacher.Teacher`; not cached, since the outputs depend on the batch."""
        return self._frozen.in_train_mode()

    def under(self, task: Task) -> Teacher:
        """See :class:`~kdtable.training.teacher.Teacher`; not cached, since the cache is of the run's own task."""
        return self._frozen.under(task)

    def _computed(self, batch: Batch, missing: Ids, parts: Iterable[str]) -> dict[str, Numbers]:
        """The outputs named in ``parts``, each (n, width), for the images at positions ``missing`` (n,) of a batch."""
        size = chunk_size(batch.images.device)
        needs = frozenset(parts) - {"logits"}
        passes = [
            self._pass(batch, missing[start : start + size], size, needs) for start in range(0, len(missing), size)
        ]
        return {
            part: _rounded(torch.cat([getattr(outputs, part) for outputs in passes])[: len(missing)], self._files[part])
            for part in parts
        }

    def _pass(self, batch: Batch, positions: Ids, size: int, needs: frozenset[str]) -> Outputs:
        """The outputs of exactly ``size`` images: those at ``positions``, padded with repeats of the first."""
        filled = np.full(size, positions[0])
        filled[: len(positions)] = positions
        part = batch.part(torch.from_numpy(filled).to(batch.images.device))
        outputs: Outputs = self._frozen.outputs(
            replace(part, images=part.images.contiguous(memory_format=LAYOUT)), needs
        )
        return outputs

    def _store(self, part: str, ids: Ids, rows: Numbers) -> None:
        if not self._writable:
            return
        try:
            self._files[part].write(ids, rows)
        except OSError as error:
            self._writable = False
            self._note(f"the teacher's cache cannot be written to ({error.strerror}): what it lacks is computed again")


def _rounded(computed: torch.Tensor, file: RowFile) -> Numbers:
    exact = computed.cpu().numpy()
    with np.errstate(over="ignore"):  # the check below gives a better message
        rows: Numbers = exact.astype(file.dtype)
    if not np.array_equal(np.isfinite(rows), np.isfinite(exact)):
        raise OverflowError("an output of the teacher is too large for half precision: use --teacher-cache fp32")
    return rows
