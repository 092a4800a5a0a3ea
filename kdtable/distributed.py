"""Several processes that train the same runs together, each on its share of every batch.

Gradients are added by one all-reduce per student and step, not by DistributedDataParallel's hooks: students of a cohort
must reduce in one order on all ranks, a term of the loss may weigh the shares of a batch unequally, and parameters that
no term reaches keep no gradient.

Whoever fails cannot come where the others wait for it. So all processes meet before anything is sent, and say how deep
they are: in how many pieces of work that they agree upon (``Ranks.agreed``) the end of. One that failed has left such a
piece, and waits at its end for the others, who hear of it wherever in the piece they are, be it a backward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdtable.errors import Trouble

#: How a piece of work ended on a process.
FAILED: Final = 1
NO_MEMORY: Final = 2

T = TypeVar("T")


class Elsewhere(RuntimeError):
    """Another process has left what this one is in the midst of: it failed there, and says why at the end of it."""


@dataclass(slots=True)
class Depth:
    """How many pieces of agreed work a process is in; autograd's threads read it too."""

    pieces: int = 0


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes, one of which this is; in a world of one, nothing is sent and nothing changes.

    Attributes:
        rank: of this process, from 0; that one keeps results.
        size: number of processes.
        accumulate: parts of a process's share of a batch whose gradients it sums.
        depth: of this process, the same for all that was made of one world by `dataclasses.replace`.
    """

    rank: int = 0
    size: int = 1
    accumulate: int = 1
    depth: Depth = field(default_factory=Depth, compare=False, repr=False)

    @property
    def micro_batches(self) -> int:
        """Of a batch, over all processes."""
        return self.size * self.accumulate

    def shard(self, count: int) -> slice:
        """Which of ``count`` images of a batch are this process's."""
        sizes = shard_sizes(count, self.size)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks of a tensor, which is changed to it; without gradients."""
        if self.size > 1:
            with self._sending():
                dist.all_reduce(tensor)
        return tensor

    def worst(self, codes: Sequence[int]) -> list[int]:
        """For each place the highest of the ranks' numbers, of which none is negative."""
        if self.size == 1 or not codes:
            return list(codes)
        if not self._meet(2 * self.depth.pieces, max(codes)):
            return [0] * len(codes)
        tensor = torch.tensor(list(codes))  # on the CPU, since no device should be waited for
        with _heard():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [int(code) for code in tensor.tolist()]

    def agreed(self, work: Callable[[], T]) -> T:
        """What ``work`` gives on this rank; where it fails on one rank it fails on all, so that none waits for it.

        Raises:
            MemoryError: memory ran out on another rank.
            RuntimeError: something else failed there.
        """
        if self.size == 1:
            return work()
        trouble: Exception | None = None
        self.depth.pieces += 1
        try:
            result = work()
        except Trouble:
            raise
        except Exception as error:
            trouble = error
        finally:
            self.depth.pieces -= 1
        (code,) = self.worst([failure(trouble)])
        if code:
            self._fail(trouble, code)
        return result

    def _fail(self, trouble: Exception | None, code: int) -> NoReturn:
        """Raise one kind of error on all ranks: the own one, or what another one says of its own."""
        own = None if isinstance(trouble, Elsewhere) else trouble
        reason = self.first_text("" if own is None else f"{type(own).__name__}: {own}")
        if own is not None and failure(own) == code:
            raise own
        kind = MemoryError if code == NO_MEMORY else RuntimeError
        raise kind(f"another process of this run failed: {reason}") from trouble

    def first_text(self, text: str) -> str:
        """The first text of the ranks that is not empty."""
        if self.size == 1:
            return text
        texts = [""] * self.size
        with self._sending():
            dist.all_gather_object(texts, text)
        return next((said for said in texts if said), "")

    def broadcast(self, content: Any) -> Any:
        """What rank 0 calls this with, on every rank; anything that can be pickled."""
        if self.size == 1:
            return content
        box = [content]
        with self._sending():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def gather(self, shard: Tensor, sizes: Sequence[int]) -> Tensor:
        """The shares of all ranks one below the other, with gradients.

        Args:
            share: this rank's (n, ...).
            sizes: n of every rank.
        """
        if self.size == 1:
            return shard
        whole: Tensor = _Gather.apply(shard, self, tuple(sizes))
        return whole

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all ranks; a parameter has one on all ranks or on none."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def share_buffers(self, *modules: nn.Module) -> None:
        """Give every rank the buffers of rank 0, as batch statistics differ from rank to rank."""
        if self.size > 1:
            with self._sending():
                for buffer in (buffer for module in modules for buffer in module.buffers()):
                    dist.broadcast(buffer, 0)

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """All ranks are in here, or none is."""
        self._meet(2 * self.depth.pieces + 1)
        with _heard():
            yield

    def _meet(self, level: int, code: int = 0) -> int:
        """Wait until all ranks are at this level, the deeper the higher; the highest of their codes.

        Raises:
            Elsewhere: a rank has left what this one is in.
        """
        while True:
            said = torch.tensor([level, -level, code])  # on the CPU, since no device should be waited for
            with _heard():
                dist.all_reduce(said, dist.ReduceOp.MAX)
            deepest, shallowest, highest = (int(number) for number in said.tolist())
            if -shallowest < level:
                raise Elsewhere("another process of this run failed")
            if deepest == level:
                return highest


@contextmanager
def _heard() -> Iterator[None]:
    """Says what it means that nobody answers."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise Trouble(f"another process of this run is gone ({first}): go on with the same command") from error


SINGLE_PROCESS: Final = Ranks()

#: What torch's allocator and its kernels for CPUs say when memory could not be had.
_SAID: Final = ("can't allocate memory", "could not create a primitive", "could not create a memory", "bad_alloc")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on any device."""
    # On a CPU they are plain RuntimeErrors.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in _SAID)


def failure(error: BaseException | None) -> int:
    """A number that processes tell each other: 0, or ``FAILED``, or ``NO_MEMORY``."""
    return 0 if error is None else NO_MEMORY if ran_out_of_memory(error) else FAILED


def shard_sizes(count: int, micro_batches: int) -> list[int]:
    """How many of ``count`` images each of ``parts`` parts has, in order; they differ by at most one."""
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
        with ranks._sending():
            dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        own = ctx.ranks.sum(grads[0].contiguous()).split(ctx.sizes)[ctx.ranks.rank]
        return own, None, None
