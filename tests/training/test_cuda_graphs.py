"""What is asked of torch when CUDA graphs are recorded, with stand-ins for its objects; and on a GPU, a real one."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdtable.training import cuda_graphs
from kdtable.training.cuda_graphs import CudaGraph, CudaGraphs

SECOND = torch.device("cuda:1")


class Generator:
    """A generator whose state is in capture from its registration on, until the capture has ended."""

    def __init__(self, state: str = "at 7") -> None:
        self.state = state

    def clone_state(self) -> "Generator":
        return Generator(self.state)

    def graphsafe_set_state(self, other: "Generator") -> None:
        self.state = other.state


class Cuda:
    """The parts of ``torch.cuda`` that recording uses, as they behave: contexts that leave, captures that may fail."""

    def __init__(self) -> None:
        self.on, self.stream_now, self.failing = 0, "default", ""
        self.log: list[tuple[Any, ...]] = []
        self.default_generators = [Generator("none"), Generator("none")]
        cuda = self

        class CUDAGraph:
            def __init__(self) -> None:
                cuda.log.append(("made", cuda.on))

            def register_generator_state(self, generator: Generator) -> None:
                generator.state = "in capture"

            def replay(self) -> None:
                cuda.log.append(("replayed", cuda.on))

            def reset(self) -> None:
                cuda.log.append(("reset",))

        self.CUDAGraph = CUDAGraph

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.on = self.on, device.index
        try:
            yield
        finally:
            self.on = before

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextmanager
    def graph(self, graph: object, pool: object, stream: str, capture_error_mode: str) -> Iterator[None]:
        """As in torch: if the capture cannot be ended, its stream is not left."""
        before, self.stream_now = self.stream_now, stream
        self.log.append(("captured", self.on, pool, stream, capture_error_mode))
        yield
        if self.failing == "empty":
            warnings.warn("The CUDA Graph is empty. This usually means ..", stacklevel=1)
        elif self.failing:
            raise RuntimeError(self.failing)
        self.stream_now = before

    def current_stream(self) -> str:
        return self.stream_now

    def current_device(self) -> int:
        return self.on

    def Stream(self) -> str:
        return f"side stream of {self.on}"

    def graph_pool_handle(self) -> object:
        return object()

    def synchronize(self, device: torch.device) -> None:
        self.log.append(("synchronised", device.index))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stand_in = Cuda()
    monkeypatch.setattr(cuda_graphs, "torch", SimpleNamespace(cuda=stand_in))
    return stand_in


def test_everything_happens_on_the_works_device(cuda: Cuda) -> None:
    graph = CudaGraphs(SECOND)()
    where: list[int] = []
    graph.record(lambda: where.append(cuda.on), [Generator()])  # type: ignore[list-item]
    graph.replay()
    graph.reset()
    assert where == [1]
    assert [entry[:2] for entry in cuda.log[:3]] == [("made", 1), ("captured", 1), ("replayed", 1)]
    assert cuda.log[1][3:] == ("side stream of 1", "thread_local")
    assert cuda.log[3:] == [("synchronised", 1), ("reset",)]
    assert cuda.on == 0


def test_the_graphs_of_an_epoch_share_a_pool_and_those_of_two_epochs_do_not(cuda: Cuda) -> None:
    first, second = CudaGraphs(SECOND), CudaGraphs(SECOND)
    for new in (first, first, second):
        new().record(lambda: None, [])
    one, other, later = (entry[2] for entry in cuda.log if entry[0] == "captured")
    assert one is other
    assert one is not later


@pytest.mark.parametrize(
    ("failing", "said"),
    [("operation not permitted", "operation not permitted"), ("empty", "it launches nothing on the device")],
)
def test_after_a_refused_capture_all_is_as_before(cuda: Cuda, failing: str, said: str) -> None:
    cuda.failing = failing
    generator = Generator()
    with pytest.raises(RuntimeError, match=said):
        CudaGraph(SECOND).record(lambda: None, [generator])  # type: ignore[list-item]
    assert cuda.stream_now == "default"
    assert generator.state == "at 7", "not in capture any more"
    assert cuda.on == 0


def test_work_that_raises_while_it_is_recorded_leaves_the_stream(cuda: Cuda) -> None:
    def work() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        CudaGraph(SECOND).record(work, [])
    assert cuda.stream_now == "default"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device_recorded_steps_agree_with_plain_ones() -> None:
    weight = torch.ones(4, device="cuda")
    graph = CudaGraph(torch.device("cuda:0"))
    graph.record(lambda: weight.mul_(2), [torch.Generator("cuda")])
    assert weight.sum().item() == 4  # recording executes nothing
    graph.replay()
    assert weight.sum().item() == 8
