"""Networks and losses on a CUDA device of fake tensors: nothing is computed, and no GPU is needed.

A tensor left on the CPU raises, and so does an operation whose result the host must read. Untested here, since these
need a device: the backward pass and the optimiser, autocast, random draws, what kernels compute, CUDA graphs.
"""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdtable.data.stream import Batch
from kdtable.doctor.rows import CPU, Built, built, rows
from kdtable.methods.at import AT
from kdtable.models.names import NETWORKS
from kdtable.models.outputs import EVERYTHING
from kdtable.tasks.base import tensors_of
from kdtable.tasks.classification import Classification
from kdtable.training.build import uninitialised

GPU = torch.device("cuda:0")


class Mover:
    """Exchanges tensors for empty ones on the GPU, in place: ``Module.to`` cannot make fake parameters of real ones."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[object, Any]] = {}  # with what was exchanged, so that no id is used again

    def module(self, module: nn.Module) -> nn.Module:
        """Exchange parameters, buffers and all other tensors that a network or method holds."""
        for one in module.modules():
            for held in (one._parameters, one._buffers):
                held.update({name: self.value(tensor) for name, tensor in held.items()})
            self._attributes(one)
        return module

    def value(self, value: Any) -> Any:
        """A tensor, or a dataclass or sequence that may hold some, exchanged; anything else as it is."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, list | tuple):
            return type(value)(map(self.value, value))
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: self.value(getattr(value, f.name)) for f in fields(value) if f.init})
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)
            self._made[id(tensor)] = tensor, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        found: Tensor = self._made[id(tensor)][1]
        return found

    def _attributes(self, holder: Any) -> None:
        for name, value in list(vars(holder).items()):
            if isinstance(value, Tensor):
                setattr(holder, name, self._tensor(value))
            elif _is_ours(value) and id(value) not in self._made:
                self._made[id(value)] = value, value
                self._attributes(value)


def _is_ours(value: object) -> bool:
    """Whether it is an object of a class of kdtable's own that may hold tensors, and no module."""
    own = type(value).__module__.startswith("kdtable.") and hasattr(value, "__dict__")
    return own and not isinstance(value, nn.Module)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_of_every_network(name: str, training: bool) -> None:
    network = uninitialised(name, 4, 32).train(training)
    with FakeTensorMode():
        images, labels = torch.empty(4, 3, 32, 32, device=GPU), torch.zeros(4, dtype=torch.int64, device=GPU)
        outputs = Classification.apply(Mover().module(network), Batch(images, labels, labels, 1), EVERYTHING)
        assert {tensor.device for tensor in tensors_of(outputs)} == {GPU}


def at_stage(row: str, number: int) -> Built:
    """A row's run at the beginning of a stage."""
    run = built(rows()[row], CPU)
    while run.member.stage is not run.member.stages[number]:
        run.member.advance()
    run.sweep()
    run.member.begin_epoch()
    return run


def fake_losses(run: Built) -> Iterable[Tensor]:
    """The loss terms of the run's stage on the GPU."""
    member, teacher = run.member, run.stage_teacher()
    networks = [value for value in vars(teacher).values() if isinstance(value, nn.Module)] if teacher else []
    batch = next(run.batches(member.stage.name, 1))
    with FakeTensorMode():
        mover = Mover()
        for module in (member.student, member.method, *networks):
            mover.module(module)
        moved = mover.value(batch)
        return member.learner.losses(member.learner.forward(moved), run.outputs(teacher, moved), moved)


@pytest.mark.parametrize("row", rows())
def test_the_losses_of_every_row(row: str) -> None:
    for number in range(len(built(rows()[row], CPU).member.stages)):
        assert {loss.device for loss in fake_losses(at_stage(row, number))} == {GPU}


def test_what_these_tests_look_for_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        on_gpu = torch.empty(2, device=GPU)
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + torch.empty(2)
        with pytest.raises(RuntimeError):
            on_gpu.sum().item()
    for loss in (lambda s: s[0].mean() + torch.zeros(1), lambda s: torch.tensor(s[0].mean().item())):
        monkeypatch.setattr(AT, "distillation", lambda self, student, teacher, batch, loss=loss: loss(student.stages))
        with pytest.raises(RuntimeError):
            fake_losses(at_stage("crd: at", 0))
