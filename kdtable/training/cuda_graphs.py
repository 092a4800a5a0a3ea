"""CUDA graphs: record a piece of work once and replay it as one launch.

CIFAR networks are too small to keep a GPU busy. A recording fixes every address and every number that Python passes to
a kernel, the learning rate included, and executes nothing.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class Graph(Protocol):
    """Records the launches of a piece of work, and replays them."""

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> None:
        """Record what ``work`` launches, without executing it.

        Raises:
            RuntimeError: ``work`` cannot be recorded, or launches nothing on the device.
        """

    def replay(self) -> None:
        """Execute the recorded launches."""

    def reset(self) -> None:
        """Free the recording and its memory."""


class CudaGraph:
    """A CUDA graph of work on one device.

    Args:
        device: the device that the work runs on.
        pool: memory pool of the graph's tensors; by default its own.
        stream: the stream to record on; by default a new one.
    """

    def __init__(self, device: torch.device, pool: Any = None, stream: torch.cuda.Stream | None = None) -> None:
        self._device, self._pool = device, pool
        with torch.cuda.device(device):
            self._stream = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> None:
        """See :class:`Graph`."""
        with torch.cuda.device(self._device):
            # Torch registers the device's default generator with every graph.
            drawing = [*generators, torch.cuda.default_generators[torch.cuda.current_device()]]
            fresh = [generator.clone_state() for generator in drawing]
            try:
                self._capture(work, generators)
            except Exception as error:
                # What was registered with a capture that failed stays in capture.
                for generator, state in zip(drawing, fresh, strict=True):
                    generator.graphsafe_set_state(state)
                if isinstance(error, Warning):
                    raise RuntimeError("it launches nothing on the device") from error
                raise

    def _capture(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> None:
        for generator in generators:
            self._graph.register_generator_state(generator)
        # If a capture cannot be ended, torch does not leave its stream; the outer context does. "thread_local", because
        # another thread pins memory for decoded images meanwhile.
        with torch.cuda.stream(torch.cuda.current_stream()), warnings.catch_warnings():
            warnings.filterwarnings("error", "The CUDA Graph is empty")
            with torch.cuda.graph(self._graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()

    def replay(self) -> None:
        """See :class:`Graph`."""
        with torch.cuda.device(self._device):
            self._graph.replay()

    def reset(self) -> None:
        """See :class:`Graph`."""
        torch.cuda.synchronize(self._device)
        self._graph.reset()


class CudaGraphs:
    """Makes the CUDA graphs of one epoch; they share a memory pool, since they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self) -> CudaGraph:
        """A new graph."""
        return CudaGraph(self._device, self._pool, self._stream)
