"""A queue of the last K vectors, kept as buffers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdtable.errors import BadRequest


class Queue(nn.Module):
    """The last K vectors of length 1, oldest replaced first; random ones at the start.

    Args:
        width: D.
        length: K.
    """

    vectors: Tensor
    pointer: Tensor

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(torch.randn(width, length), dim=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, vectors: Tensor) -> None:
        """Replace the oldest vectors by ``vectors`` (B, D), B <= K, and move the pointer behind them."""
        columns = (self.pointer + torch.arange(len(vectors), device=self.pointer.device)) % self.vectors.shape[1]
        self.vectors[:, columns] = vectors.T.to(self.vectors.dtype)
        self.pointer.copy_((self.pointer + len(vectors)) % self.vectors.shape[1])


def queue_bytes(width: int, length: int) -> int:
    """Bytes of a queue in use: itself, as a loss reads it, and as the checkpoint is written from it."""
    return 3 * torch.float32.itemsize * width * length


def check_queue(length: int, batch: int) -> None:
    """Raise `BadRequest` unless batches fill a queue evenly."""
    if length % batch:
        raise BadRequest(
            f"a queue of {length} vectors is no multiple of the batch of {batch} images: use --set "
            f"queue={-(-length // batch) * batch}, or another --batch-size"
        )
