"""Check a recording against the work that it recorded: one step as it is, one by replay, from the same state."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from kdtable.training.cuda_graphs import Graph

#: A replay may differ from the work by this fraction of the change that one step makes: kernels add in any order.
_OF_CHANGE: Final = 1e-3
#: And by this fraction of the numbers themselves: their last bits.
_OF_VALUE: Final = 1e-6


class Recordable(Protocol):
    """Work that is done again and again on the same inputs."""

    def __call__(self) -> None:
        """Do it once."""

    @property
    def name(self) -> str:
        """What it is, for the user."""

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The generators that it draws from."""

    def state(self) -> dict[str, list[Tensor]]:
        """The tensors that it changes in place, by kind; those of the first kind change each time."""


class Snapshot:
    """Copies of tensors, by kind, and of generators' states."""

    def __init__(self, state: Mapping[str, Sequence[Tensor]], generators: Sequence[torch.Generator]) -> None:
        self._state, self._generators = state, generators
        self.copies = {kind: [tensor.detach().clone() for tensor in tensors] for kind, tensors in state.items()}
        self.draws = [generator.get_state() for generator in generators]

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back in place, so that recorded addresses stay valid."""
        for kind, copies in self.copies.items():
            for tensor, copy in zip(self._state[kind], copies, strict=True):
                tensor.copy_(copy)
        for generator, draw in zip(self._generators, self.draws, strict=True):
            generator.set_state(draw)


def checked_replay(work: Recordable, graph: Graph) -> str | None:
    """Do the work once, and find out whether its recording does the same.

    Returns:
        ``None`` if it does; the state is then the replay's. Else what differs; the state is then the work's.
    """
    state, generators = work.state(), work.generators
    before = Snapshot(state, generators)
    work()
    plain = Snapshot(state, generators)
    before.restore()
    graph.replay()
    reason = _difference(before, plain, Snapshot(state, generators))
    if reason:
        plain.restore()
    return reason


def _difference(before: Snapshot, plain: Snapshot, replayed: Snapshot) -> str | None:
    """What a replay does otherwise than the work, if anything."""
    first = next(iter(plain.copies))
    if not any(map(_differ, before.copies[first], plain.copies[first])):
        return f"a step changed none of its {first}, so that its replay cannot be checked"
    for kind, copies in plain.copies.items():
        if not _alike(before.copies[kind], copies, replayed.copies[kind]):
            return f"a replayed step ended with other {kind} than the step itself"
    if any(map(_differ, plain.draws, replayed.draws)):
        return "a replayed step drew other random numbers than the step itself"
    return None


def _differ(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


def _alike(before: list[Tensor], plain: list[Tensor], replayed: list[Tensor]) -> bool:
    """Whether a step and its replay end alike: integers equal, other numbers but for rounding."""
    if _differ(_flat(plain, whole=True), _flat(replayed, whole=True)):
        return False
    old, one, other = (_flat(tensors, whole=False) for tensors in (before, plain, replayed))
    allowed = _OF_CHANGE * (one - old).norm() + _OF_VALUE * one.norm()
    # If the step itself is not finite the run has diverged, which the end of its epoch reports.
    return not bool(allowed.isfinite()) or bool((other - one).norm() <= allowed)


def _flat(tensors: list[Tensor], *, whole: bool) -> Tensor:
    """All integers, or else all other numbers in float64, in one row."""
    chosen = [tensor.flatten() for tensor in tensors if tensor.is_floating_point() != whole]
    return torch.cat([one if whole else one.double() for one in chosen]) if chosen else torch.zeros(0)
