"""Images of a detection set in files: kept decoded if they are few, else decoded in worker processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdtable.data.decoding import Loader, default_workers, with_room
from kdtable.data.pixels import decode_image
from kdtable.errors import BadRequest, Trouble
from kdtable.hardware import available_cores
from kdtable.models.detection.batch import Size

#: Limit of the decoded images of a part that are kept.
KEEP_BYTES: Final = 2**30
#: Images of a batch that workers' shared memory must have room for.
_AT_ONCE: Final = 16


class ImageFiles:
    """The images of a part; see `kdtable.data.detection.sets.Pixels`.

    Args:
        root: the set's folder.
        names: of the files, relative to it.
        sizes: height and width of each image, as the annotations say.
    """

    def __init__(self, root: Path, names: Sequence[str], sizes: Sequence[Size]) -> None:
        self._decoder = _Decoder(root, names, sizes)
        taken = [3 * height * width for height, width in sizes]
        self._kept: dict[int, Tensor] | None = {} if sum(taken) <= KEEP_BYTES else None
        workers = 0 if self._kept is not None else with_room(default_workers(available_cores()), _AT_ONCE * max(taken))
        self._loader = Loader(self._decoder, workers, pin=False)  # type: ignore[arg-type]

    def batches(self, plan: Iterator[list[int]]) -> Iterator[list[Tensor]]:
        """See the protocol.

        Raises:
            Trouble: an image cannot be read, or has another size.
        """
        if self._kept is not None:
            return map(self._from_memory, plan)
        found: Iterator[Any] = self._loader.batches(plan)  # type: ignore[arg-type]
        return found

    def _from_memory(self, index: list[int]) -> list[Tensor]:
        assert self._kept is not None
        for position in index:
            if position not in self._kept:
                (self._kept[position],) = _checked(self._decoder.__getitems__([position]))
        return [self._kept[position] for position in index]


class _Decoder(Dataset[Any]):
    """Decodes images by position, a batch at a time."""

    def __init__(self, root: Path, names: Sequence[str], sizes: Sequence[Size]) -> None:
        self._root, self._names, self._sizes = root, tuple(names), tuple(sizes)

    def __getitems__(self, index: Sequence[int]) -> list[Tensor] | str:
        """Images (3, h, w) uint8, or an error message: one that is raised in a worker loses its text."""
        try:
            return [self._image(position) for position in index]
        except (BadRequest, OSError) as error:
            return f"{error}; replace it, or correct the annotations"

    def _image(self, position: int) -> Tensor:
        file, size = self._root / self._names[position], self._sizes[position]
        image = decode_image(file, file.read_bytes())
        if (image.height, image.width) != size:
            raise BadRequest(
                f"{file}: {image.width} x {image.height} pixels, and its annotations say {size[1]} x {size[0]}"
            )
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _checked(images: list[Tensor] | str) -> list[Tensor]:
    if isinstance(images, str):
        raise Trouble(images)
    return images
