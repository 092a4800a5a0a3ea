"""A pass of every network on a CUDA device of fake tensors: nothing is computed, and no GPU is needed.

A tensor left on the CPU raises, and so does an operation whose result the host must read. Untested here, since these
need a device: losses and the backward pass, autocast, what kernels compute, CUDA graphs.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdtable.data.stream import Batch
from kdtable.models.names import NETWORKS
from kdtable.models.outputs import EVERYTHING
from kdtable.tasks.base import tensors_of
from kdtable.tasks.classification import Classification
from kdtable.training.build import uninitialised

GPU = torch.device("cuda:0")


def moved(module: nn.Module) -> nn.Module:
    """``module`` with empty tensors on the device: torch cannot exchange real parameters for fake ones in place."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for one in module.modules():
        for held in (one._parameters, one._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)
                    made[tensor] = nn.Parameter(empty) if held is one._parameters else empty
                held[name] = tensor if tensor is None else made[tensor]
    return module


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_of_every_network(name: str, training: bool) -> None:
    network = uninitialised(name, 4, 32).train(training)
    with FakeTensorMode():
        images, labels = torch.empty(4, 3, 32, 32, device=GPU), torch.zeros(4, dtype=torch.int64, device=GPU)
        outputs = Classification.apply(moved(network), Batch(images, labels, labels, 1), EVERYTHING)
        assert {tensor.device for tensor in tensors_of(outputs)} == {GPU}


def test_what_this_test_looks_for_raises() -> None:
    with FakeTensorMode():
        on_gpu = torch.empty(2, device=GPU)
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + torch.empty(2)
        with pytest.raises(RuntimeError):
            on_gpu.sum().item()
