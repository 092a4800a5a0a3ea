"""Batches of decoded images, made by worker processes ahead of whoever uses them.

An image's bytes are a function of its file and its seed, so nothing depends on how many processes there are.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from kdtable.data.crops import DRAWS, central_view, training_view
from kdtable.data.listing import Names, read_bytes
from kdtable.data.pixels import photograph
from kdtable.errors import BadRequest, Trouble

#: Whether of the training images; position among them; seed of its crop and mirroring, ``None`` for the test view.
Key = tuple[bool, int, int | None]

#: Batches that each process has ready or in the making.
AHEAD: Final = 2

#: Where tensors lie that pass from one process to another.
SHARED: Final = Path("/dev/shm")

#: More processes than this decode faster than a GPU learns, and each takes 300 MB.
MOST_WORKERS: Final = 16


def default_workers(cores: int) -> int:
    """Processes that decode: all cores but the one that the training waits on; none of its own on a single core."""
    return min(cores - 1, MOST_WORKERS)


def with_room(workers: int, batch_bytes: int, shared: Path = SHARED) -> int:
    """So many of the processes that their batches fit into the memory that they are handed over in.

    Containers have 64 MiB of it unless they are asked for more, and a process that finds none is killed.
    """
    if not shared.is_dir():  # but on Linux
        return workers
    return min(workers, shutil.disk_usage(shared).free // ((AHEAD + 1) * batch_bytes))


@dataclass(frozen=True, eq=False)
class Decoder(Dataset[Any]):
    """A set's images by key, a batch at a time.

    Attributes:
        root: the set's folder.
        train: names of the training images.
        test: names of the test images.
        size: height and width of what comes out.
        flip: whether training images may be mirrored.
    """

    root: Path
    train: Names
    test: Names
    size: int
    flip: bool

    def __getitems__(self, keys: Sequence[Key]) -> torch.Tensor | str:
        """Images (B, S, S, 3) uint8; or what is wrong with one of them.

        Not raised: an error that passes from one process to another loses its text in a traceback.
        """
        images = np.empty((len(keys), self.size, self.size, 3), np.uint8)
        try:
            for position, key in enumerate(keys):
                images[position] = self._view(key)
        except BadRequest as error:
            return f"{error}; replace it, or leave out all images that cannot be read with --skip-unreadable"
        return torch.from_numpy(images)

    def _view(self, key: Key) -> NDArray[np.uint8]:
        of_train, index, seed = key
        name = (self.train if of_train else self.test)[index]
        image = photograph(*read_bytes(self.root, name))
        if seed is None:
            return central_view(image, self.size)
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(DRAWS, dtype=torch.float64, generator=generator).tolist()
        return training_view(image, self.size, draws, self.flip)


class Loader:
    """Decodes batches in processes that stay, or in the calling thread where there are none or they are busy.

    Args:
        decoder: what they decode.
        workers: how many; 0 for none.
        pin: whether batches come in memory that a CUDA device can copy from while it computes.
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
        # Never waits: whoever holds the processes may have stopped in the middle for good.
        if not self._workers or not self._busy.acquire(blocking=False):
            yield from map(_whole, map(self._decoder.__getitems__, plan))
            return
        try:
            self._plan.batches = plan
            yield from map(_whole, self._processes())
        except RuntimeError as error:  # torch's, when one of its processes is gone
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
                collate_fn=_same,
                pin_memory=self._pin,
                worker_init_fn=_begin,
                multiprocessing_context="spawn",  # a fork would copy torch's threads half
                persistent_workers=True,
                prefetch_factor=AHEAD,
                generator=torch.Generator(),  # else each pass draws from the global one
            )
        return iter(self._loader)


class _Plan:
    """What the processes are to decode next; the loader asks for it at the start of each pass."""

    batches: Iterator[list[Key]] = iter(())

    def __iter__(self) -> Iterator[list[Key]]:
        return self.batches


def _same(images: Any) -> Any:
    return images


def _begin(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted command ends its processes itself
    # To take Python and torch apart lasts seconds, and the training waits for the end of every process.
    Finalize(None, os._exit, args=(0,), exitpriority=-1000)


def _whole(images: torch.Tensor | str) -> torch.Tensor:
    if isinstance(images, str):
        raise Trouble(images)
    return images
