"""Process groups: several ranks train the same runs, each on its shard of every batch.

Gradients are summed by one all-reduce per student and step, not by DistributedDataParallel's hooks: the students of a
cohort must reduce in the same order on all ranks, a loss term may weigh shards unequally, and parameters that no term
reaches have no gradient.

A rank that fails raises and its process ends. The process that started the ranks ends the others and says why.
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
    """The process group and this process's rank; with one process every collective is a no-op.

    Attributes:
        rank: of this process, from 0. Rank 0 stores results.
        size: number of processes.
        accumulate: number of micro-batches of a rank's shard, whose gradients are summed.
    """

    rank: int = 0
    size: int = 1
    accumulate: int = 1

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of a batch, over all ranks."""
        return self.size * self.accumulate

    def shard(self, count: int) -> slice:
        """This rank's shard of a batch of ``count`` examples."""
        sizes = shard_sizes(count, self.size)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place and without gradients."""
        if self.size > 1:
            with _peers():
                dist.all_reduce(tensor)
        return tensor

    def broadcast(self, content: Any) -> Any:
        """Rank 0's ``content``, on every rank; anything that can be pickled."""
        if self.size == 1:
            return content
        box = [content]
        with _peers():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def all_gather_objects(self, content: Any) -> list[Any]:
        """Every rank's ``content``, in order, on every rank; anything that can be pickled."""
        if self.size == 1:
            return [content]
        found = [None] * self.size
        with _peers():
            dist.all_gather_object(found, content)
        return found

    def all_gather(self, shard: Tensor, sizes: Sequence[int]) -> Tensor:
        """Concatenate the shards of all ranks, with gradients.

        Args:
            shard: this rank's, (n, ...).
            sizes: n of every rank.
        """
        if self.size == 1:
            return shard
        whole: Tensor = _Gather.apply(shard, self, tuple(sizes))
        return whole

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over all ranks; a parameter has a gradient on all ranks or on none."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        flat = self.all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def broadcast_buffers(self, *modules: nn.Module) -> None:
        """Copy rank 0's buffers to every rank, since batch statistics differ between ranks."""
        if self.size > 1:
            with _peers():
                for buffer in (buffer for module in modules for buffer in module.buffers()):
                    dist.broadcast(buffer, 0)


@contextmanager
def _peers() -> Iterator[None]:
    """Translate torch's errors when another rank does not answer.

    Raises:
        Trouble: another rank has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        raise Trouble(f"another process of this run is gone ({first}): go on with the same command") from error


SINGLE_PROCESS: Final = Ranks()

#: Texts of torch's plain RuntimeErrors when its CPU allocator or kernels run out of memory.
_OUT_OF_MEMORY: Final = (
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "bad_alloc",
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(t in str(error) for t in _OUT_OF_MEMORY)


def shard_sizes(count: int, micro_batches: int) -> list[int]:
    """Sizes of the micro-batches of ``count`` examples, in order; they differ by at most one."""
    small, larger = divmod(count, micro_batches)
    return [small + (position < larger) for position in range(micro_batches)]


class _Gather(torch.autograd.Function):
    """Every rank's rows; backwards, the gradient of this rank's rows, summed over all ranks."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, ranks: Ranks, sizes: tuple[int, ...]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        # Not every backend gathers tensors of different shapes.
        padded = shard.new_zeros(max(sizes), *shard.shape[1:])
        padded[: len(shard)] = shard
        found = [torch.empty_like(padded) for _ in sizes]
        with _peers():
            dist.all_gather(found, padded)
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        own = ctx.ranks.all_reduce(grads[0].contiguous()).split(ctx.sizes)[ctx.ranks.rank]
        return own, None, None
