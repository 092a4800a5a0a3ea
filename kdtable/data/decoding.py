"""Decode batches of images in worker processes, ahead of their use.

An image's bytes depend only on its file and its seed, not on the number of processes.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from kdtable.data.crops import AREA, DRAWS, central_view, training_view
from kdtable.data.listing import Names, read_bytes
from kdtable.data.pixels import decode_image
from kdtable.data.randaugment import RandAugment
from kdtable.data.stream import PartName
from kdtable.data.views import View
from kdtable.errors import BadRequest, Trouble

#: Part of the set; position in it; seed of the crop, mirroring and further operations, ``None`` for the test view;
#: these operations.
Key = tuple[PartName, int, int | None, RandAugment | View | None]

#: Batches that each process prefetches.
AHEAD: Final = 2

#: The folder of shared memory, through which processes pass tensors.
SHARED: Final = Path("/dev/shm")

#: Limit of worker processes: more decode faster than a GPU trains, and each takes 300 MB.
MOST_WORKERS: Final = 16


def default_workers(cores: int) -> int:
    """Number of worker processes: one core is left for training; 0 on a single core."""
    return min(cores - 1, MOST_WORKERS)


def with_room(workers: int, batch_bytes: int, shared: Path = SHARED) -> int:
    """Limit ``workers`` so that their batches fit into shared memory.

    Containers have 64 MiB of it by default, and a process that finds none is killed.
    """
    if not shared.is_dir():  # only Linux has it
        return workers
    return min(workers, shutil.disk_usage(shared).free // ((AHEAD + 1) * batch_bytes))


@dataclass(frozen=True, eq=False)
class Decoder(Dataset[Any]):
    """Decodes a set's images by key, a batch at a time.

    Attributes:
        root: the set's folder.
        names: of the images, by part.
        size: height and width of the crops.
        flip: whether training images may be mirrored.
    """

    root: Path
    names: Mapping[PartName, Names]
    size: int
    flip: bool

    def __getitems__(self, keys: Sequence[Key]) -> torch.Tensor | str:
        """Images (B, S, S, 3) uint8, or an error message about one of them.

        The error is returned, since one that is raised in another process loses its text in a traceback.
        """
        images = np.empty((len(keys), self.size, self.size, 3), np.uint8)
        try:
            for position, key in enumerate(keys):
                images[position] = self._view(key)
        except BadRequest as error:
            return f"{error}; replace it, or leave out all images that cannot be read with --skip-unreadable"
        return torch.from_numpy(images)

    def _view(self, key: Key) -> NDArray[np.uint8]:
        part, index, seed, augment = key
        image = decode_image(*read_bytes(self.root, self.names[part][index]))
        if seed is None:
            return central_view(image, self.size)
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(DRAWS, dtype=torch.float64, generator=generator).tolist()
        least = augment.least if isinstance(augment, View) else AREA[0]
        view = training_view(image, self.size, draws, self.flip, least)
        if augment is None:
            return view
        further = torch.rand(augment.draws, dtype=torch.float64, generator=generator).tolist()
        return np.asarray(augment(Image.fromarray(view), further))


class Loader:
    """Decodes batches in persistent worker processes, or in the calling thread if there are none or they are busy.

    Args:
        decoder: decodes a batch of keys.
        workers: number of processes; 0 for none.
        pin: whether to return batches in pinned memory, from which CUDA copies asynchronously.
    """

    def __init__(self, decoder: Decoder, workers: int, pin: bool) -> None:
        self._decoder = decoder
        self._workers = workers
        self._pin = pin
        self._plan = _Plan()
        self._loader: DataLoader[Any] | None = None
        self._busy = Lock()

    def batches(self, plan: Iterator[list[Key]]) -> Iterator[torch.Tensor]:
        """Images (B, S, S, 3) uint8 of each batch of keys, in order.

        Raises:
            Trouble: an image cannot be read, or a process was killed.
        """
        # Never wait: the generator that holds the processes may never be resumed.
        if not self._workers or not self._busy.acquire(blocking=False):
            yield from map(_checked, map(self._decoder.__getitems__, plan))
            return
        try:
            self._plan.batches = plan
            yield from map(_checked, self._processes())
        except RuntimeError as error:  # torch's, when a worker has died
            self._loader = None
            raise Trouble(
                f"a process that decodes images ended before its time; was memory short, or /dev/shm full? ({error})"
            ) from error
        finally:
            self._busy.release()

    def _processes(self) -> Iterator[torch.Tensor | str]:
        if self._loader is None:
            self._loader = DataLoader(
                self._decoder,
                batch_sampler=self._plan,
                num_workers=self._workers,
                collate_fn=_identity,
                pin_memory=self._pin,
                worker_init_fn=_init_worker,
                multiprocessing_context="spawn",  # fork is unsafe with torch's threads
                persistent_workers=True,
                prefetch_factor=AHEAD,
                generator=torch.Generator(),  # else each pass draws from the global generator
            )
        return iter(self._loader)


class _Plan:
    """The keys of the next pass; the loader reads them when the pass starts."""

    batches: Iterator[list[Key]] = iter(())

    def __iter__(self) -> Iterator[list[Key]]:
        return self.batches


def _identity(images: Any) -> Any:
    return images


def _init_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted command ends its workers itself
    # Python's and torch's cleanup takes seconds, and training waits for every process to end.
    Finalize(None, os._exit, args=(0,), exitpriority=-1000)


def _checked(images: torch.Tensor | str) -> torch.Tensor:
    if isinstance(images, str):
        raise Trouble(images)
    return images
