"""Ranks: processes that train the same runs together, each on its shard of every batch.

Gradients are added by one all-reduce per student and step, not by DistributedDataParallel's hooks: students of a cohort
must reduce in one order on all ranks, a term of the loss may weigh the shards of a batch unequally, and parameters that
no term reaches keep no gradient.

A rank that fails raises, and its process ends: whoever started the ranks ends the others and says why.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdtable.errors import Trouble


@dataclass(frozen=True, slots=True)
class Ranks:
    """The process group and this process's rank in it; a single process sends nothing and changes nothing.

    Attributes:
        rank: of this process, from 0; that one keeps results.
        size: number of processes.
        accumulate: micro-batches of a rank's shard, whose gradients it sums.
    """

    rank: int = 0
    size: int = 1
    accumulate: int = 1

    @property
    def micro_batches(self) -> int:
        """Of a batch, over all ranks."""
        return self.size * self.accumulate

    def shard(self, count: int) -> slice:
        """Which of ``count`` examples of a batch are this rank's."""
        sizes = shard_sizes(count, self.size)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of a tensor, which is changed to it; without gradients."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(tensor)
        return tensor

    def broadcast(self, content: Any) -> Any:
        """What rank 0 calls this with, on every rank; anything that can be pickled."""
        if self.size == 1:
            return content
        box = [content]
        with _peers():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def all_gather(self, shard: Tensor, sizes: Sequence[int]) -> Tensor:
        """The shards of all ranks one below the other, with gradients.

        Args:
            shard: this rank's (n, ...).
            sizes: n of every rank.
        """
        if self.size == 1:
            return shard
        whole: Tensor = _Gather.apply(shard, self, tuple(sizes))
        return whole

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all ranks; a parameter has one on all ranks or on none."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        flat = self.all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def broadcast_buffers(self, *modules: nn.Module) -> None:
        """Give every rank the buffers of rank 0, as batch statistics differ from rank to rank."""
        if self.size > 1:
            with _peers():
                for buffer in (buffer for module in modules for buffer in module.buffers()):
                    dist.broadcast(buffer, 0)


@contextmanager
def _peers() -> Iterator[None]:
    """Say what it means that another rank does not answer.

    Raises:
        Trouble: it has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        raise Trouble(f"another process of this run is gone ({first}): go on with the same command") from error


SINGLE_PROCESS: Final = Ranks()

#: What torch's allocator and its kernels for CPUs say when memory could not be had.
_SAID: Final = ("can't allocate memory", "could not create a primitive", "could not create a memory", "bad_alloc")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on any device."""
    # On a CPU they are plain RuntimeErrors.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _SAID)


def shard_sizes(count: int, micro_batches: int) -> list[int]:
    """How many of ``count`` examples each micro-batch has, in order; they differ by at most one."""
    small, larger = divmod(count, micro_batches)
    return [small + (part < larger) for part in range(micro_batches)]


class _Gather(torch.autograd.Function):
    """Every rank's rows; backwards, the sum over all ranks of the gradient of one's own rows."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, ranks: Ranks, sizes: tuple[int, ...]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        # Equal shapes are all that every backend can gather.
        padded = shard.new_zeros(max(sizes), *shard.shape[1:])
        padded[: len(shard)] = shard
        found = [torch.empty_like(padded) for _ in sizes]
        with _peers():
            dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        own = ctx.ranks.all_reduce(grads[0].contiguous()).split(ctx.sizes)[ctx.ranks.rank]
        return own, None, None
