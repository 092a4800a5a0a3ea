"""A CUDA device of fake tensors: nothing is computed, and no GPU is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from kdtable import seeding
from kdtable.methods import crd
from kdtable.methods.parts.negatives import ClassNegatives
from kdtable.training.step import Learner

GPU = torch.device("cuda:0")


class Generator(torch.Generator):
    """A generator on the CPU that says it is the GPU's."""

    device = GPU


class Negatives(ClassNegatives):
    """Counts its classes on real labels, since building may read on the host; then all it holds is on the GPU."""

    def __init__(self, labels: torch.Tensor, count: int, generator: torch.Generator) -> None:
        with unset_fake_temporarily():
            super().__init__(torch.arange(len(labels)) % 4, count, generator)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, torch.empty(value.shape, dtype=value.dtype, device=GPU))


def goes_backward() -> bool:
    """Whether this build of torch can run a backward pass on fake CUDA tensors: not a CUDA build without a GPU."""
    with FakeTensorMode():
        weight = torch.empty(2, device=GPU, requires_grad=True)
        try:
            weight.sum().backward()
        except RuntimeError as error:
            if "hasPrimaryContext" not in str(error):
                raise
            return False
    return True


def _made_up(learner: Learner, _: torch.Tensor) -> None:
    for group in learner.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)


def _moved(module: nn.Module, device: torch.device | None = None, **_: Any) -> nn.Module:
    """``module.to(device)``: torch's own cannot exchange fake parameters in place."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for one in module.modules():
        for held in (one._parameters, one._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor not in made:
                    copy = tensor.detach().to(device)
                    made[tensor] = nn.Parameter(copy, tensor.requires_grad) if held is one._parameters else copy
                held[name] = tensor if tensor is None else made[tensor]
    return module


@contextmanager
def fake_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make new tensors fake, and all that asks for a generator or for a backward pass content."""

    def generator(*parts: Any, device: Any = "cpu") -> torch.Generator:
        made = torch.Generator() if torch.device(device).type == "cpu" else Generator()
        return made.manual_seed(seeding.derive(*parts))

    patch.setattr(seeding, "generator", generator)
    patch.setattr(nn.Module, "to", _moved)
    patch.setattr(crd, "ClassNegatives", Negatives)
    if not goes_backward():
        patch.setattr(Learner, "backward", _made_up)
    with FakeTensorMode():
        yield
