"""Networks and steps on a CUDA device of fake tensors: nothing is computed, and no GPU is needed.

A tensor left on the CPU raises, and so does an operation whose result the host must read. Torch's engine for backward
passes asks for a real device, so a walk over the graph of a loss stands in for it, which calls the same derivatives.
Untested here, since these need a device: autocast, random draws, what kernels compute, CUDA graphs.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdtable.data.stream import Batch
from kdtable.doctor.rows import CPU, PAIRS, Built, built, rows
from kdtable.methods.at import AT
from kdtable.models.names import of_task
from kdtable.models.outputs import EVERYTHING
from kdtable.models.uninitialised import uninitialised
from kdtable.planning.given import GivenWeights
from kdtable.planning.request import DataRequest, Request
from kdtable.planning.resolve import resolve
from kdtable.planning.run import Run
from kdtable.planning.teacher_refs import MissingTeacher, SeveralTeachers
from kdtable.planning.teachers import teacher_finder
from kdtable.tasks.base import tensors_of
from kdtable.tasks.classification import Classification
from kdtable.training.member import Member

GPU = torch.device("cuda:0")
#: Several methods at once: draws, sweeps, early stages of both, a teacher in train mode.
COMBINED = ("at+crd", "nd+rkd+kd", "ab+ft", "dkd+reviewkd", "cd+gkd+mgd")


@cache
def combined() -> dict[str, Run]:
    find = teacher_finder(Path("no teachers"), GivenWeights(), allow_missing=True)
    planned = resolve(Request([PAIRS[0]], COMBINED, [1], data=DataRequest("digits")), find)
    assert not any(one.not_applicable for one in planned)
    return {one.row: one.run for one in planned}


OF_TIMM = ("timm:test_resnet", "timm:test_vit") if find_spec("timm") else ()


class Mover:
    """Exchanges tensors for empty ones on the GPU, in place: ``Module.to`` cannot make fake parameters of real ones."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[object, Any]] = {}  # with what was exchanged, so that no id is used again

    def module(self, module: nn.Module) -> nn.Module:
        """Exchange parameters, buffers and all other tensors that a network or method holds."""
        for one in module.modules():
            for held in (one._parameters, one._buffers):
                held.update({name: self.value(tensor) for name, tensor in held.items()})
            self.attributes(one)
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

    def attributes(self, holder: Any) -> None:
        """Exchange the tensors that an object holds, and those of our own objects in it."""
        for name, value in list(vars(holder).items()):
            if isinstance(value, Tensor):
                setattr(holder, name, self._tensor(value))
            elif _is_ours(value) and id(value) not in self._made:
                self._made[id(value)] = value, value
                self.attributes(value)


def _is_ours(value: object) -> bool:
    """Whether it is an object of a class of kdtable's own that may hold tensors, and no module."""
    own = type(value).__module__.startswith("kdtable.") and hasattr(value, "__dict__")
    return own and not isinstance(value, nn.Module)


@pytest.mark.parametrize("name", [*of_task("classification"), "torchvision:resnet18", *OF_TIMM])
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_of_every_network(name: str, training: bool) -> None:
    network = uninitialised(name, 4, 32).train(training)
    with FakeTensorMode():
        images, labels = torch.empty(4, 3, 32, 32, device=GPU), torch.zeros(4, dtype=torch.int64, device=GPU)
        outputs = Classification.apply(Mover().module(network), Batch(images, labels, labels, 1), EVERYTHING)
        assert {tensor.device for tensor in tensors_of(outputs)} == {GPU}


def run_of(row: str) -> Run:
    return rows().get(row) or combined()[row]


def at_stage(row: str, number: int) -> Built:
    """A row's run at the beginning of a stage."""
    run = built(run_of(row), CPU)
    while run.member.stage is not run.member.stages[number]:
        run.member.advance()
    run.sweep()
    run.member.begin_epoch()
    return run


def gradients(loss: Tensor) -> dict[Tensor, Tensor]:
    """The gradient of each parameter that a loss depends on."""
    found: dict[Tensor, Tensor] = {}
    uses = uses_of(loss.grad_fn)
    held: dict[Any, list[Any]] = {loss.grad_fn: [torch.ones_like(loss)]}
    ready: list[Any] = [loss.grad_fn]
    while ready:
        node = ready.pop()
        for (following, number), gradient in derived(node, held.pop(node), found):
            slots = held.setdefault(following, [None] * max(1, len(following._input_metadata)))
            if gradient is not None:
                slots[number] = gradient if slots[number] is None else slots[number] + gradient
            uses[following] -= 1
            if not uses[following]:
                ready.append(following)
    return found


def uses_of(root: Any) -> dict[Any, int]:
    """The nodes of a graph that goes backward from ``root``, and from how many places each receives a gradient."""
    uses, todo = {root: 0}, [root]
    while todo:
        for following, _ in todo.pop().next_functions:
            if following is not None:
                if following not in uses:
                    todo.append(following)
                uses[following] = uses.get(following, 0) + 1
    return uses


def derived(node: Any, received: list[Any], found: dict[Tensor, Tensor]) -> list[tuple[tuple[Any, int], Any]]:
    """What a node passes on, with its receivers; a parameter's gradient goes to ``found``."""
    if hasattr(node, "variable"):
        if received[0] is not None:
            found[node.variable] = received[0].sum_to_size(node.variable.shape)
        return []
    count = len(node.next_functions)
    passed = node(*received) if any(gradient is not None for gradient in received) else (None,) * count
    every = zip(node.next_functions, passed if isinstance(passed, tuple) else (passed,), strict=True)
    return [(to, fitted(gradient, *to)) for to, gradient in every if to[0] is not None]


def fitted(gradient: Tensor | None, node: Any, number: int) -> Tensor | None:
    """A gradient in its receiver's shape, as torch's engine sums it over what was broadcast."""
    if gradient is None or not node._input_metadata:
        return gradient
    return gradient.sum_to_size(node._input_metadata[number].shape)


def assign_gradients(loss: Tensor, *_: object, **__: object) -> None:
    """Stands in for `torch.autograd.backward`."""
    for parameter, gradient in gradients(loss).items():
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def return_gradients(loss: Tensor, inputs: Sequence[Tensor], **_: object) -> tuple[Tensor | None, ...]:
    """Stands in for `torch.autograd.grad`."""
    found = gradients(loss)
    return tuple(found.get(tensor) for tensor in inputs)


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.autograd, "backward", assign_gradients)
    monkeypatch.setattr(torch.autograd, "grad", return_gradients)


def take_fake_step(run: Built) -> None:
    """Move the run to the GPU and take a step of its stage, in place: a recorded step cannot exchange a tensor."""
    member, teacher = run.member, run.stage_teacher()
    networks = [value for value in vars(teacher).values() if isinstance(value, nn.Module)] if teacher else []
    batch = next(run.batches(member.stage.name, 1))
    with FakeTensorMode():
        mover = Mover()
        averages = [member.learner.average.network] if member.learner.average else []
        for module in (member.student, member.method, *averages, *networks):
            mover.module(module)
        for group in member.optimizer.param_groups:
            group["params"] = mover.value(group["params"])
            if "capturable" in group:
                group["capturable"] = True  # as an optimiser that is made for a GPU
        member.learner.sums = mover.value(member.learner.sums)
        mover.attributes(member.learner._meter)
        moved = mover.value(batch)
        before = tensors_held(member)
        member.step(moved, run.outputs(teacher, moved))
        assert {id(tensor) for tensor in before} <= {id(tensor) for tensor in tensors_held(member)}


def tensors_held(member: Member) -> list[Tensor]:
    """All that a step may change, and what else the method holds."""
    attributes = [value for module in member.method.modules() for value in vars(module).values()]
    moving = [tensor for tensors in member.learner.moving().values() for tensor in tensors]
    return [*moving, *(value for value in attributes if isinstance(value, Tensor))]


@pytest.mark.parametrize("row", [*rows(), *COMBINED])
def test_a_step_of_every_row(row: str, walked: None) -> None:
    for number in range(len(built(run_of(row), CPU).member.stages)):
        run = at_stage(row, number)
        take_fake_step(run)
        state = run.member.learner.moving()
        assert {tensor.device for tensors in state.values() for tensor in tensors} == {GPU}
        assert run.member.optimizer.state, "a gradient reached the optimiser"


#: Fields of the recipe that were added after the papers' recipes.
LATER: list[dict[str, Any]] = [
    {"optimizer": "adamw"},
    {"schedule": "cosine"},
    {"schedule": "linear"},
    {"label_smoothing": 0.1},
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"randaugment": 2},
    {"ema": 0.9},
    {"optimizer": "adamw", "label_smoothing": 0.1, "mixup": 0.2, "ema": 0.9},
]


@pytest.mark.parametrize("changed", LATER, ids=str)
@pytest.mark.parametrize("epoch", [1, 2])  # its first step copies the student into its average, or moves that
def test_a_step_of_later_recipes(changed: dict[str, Any], epoch: int, walked: None) -> None:
    planned = rows()["crd: kd"]
    run = built(replace(planned, recipe=replace(planned.recipe, **changed)), CPU)
    run.member.learner.begin_epoch(epoch)
    take_fake_step(run)
    state = run.member.learner.moving()
    assert {tensor.device for tensors in state.values() for tensor in tensors} == {GPU}
    assert run.member.optimizer.state


@pytest.mark.parametrize("row", ["crd: kd", "zoo: dkd"])
def test_a_step_with_several_teachers(row: str, walked: None) -> None:
    run = rows()[row]
    one = run.teacher
    assert isinstance(one, MissingTeacher)
    several = SeveralTeachers((one, replace(one, network="resnet20")))
    taught = built(replace(run, teacher=several), CPU)
    taught.member.begin_epoch()
    take_fake_step(taught)
    state = taught.member.learner.moving()
    assert {tensor.device for tensors in state.values() for tensor in tensors} == {GPU}
    assert taught.member.optimizer.state


def test_the_walk_gives_the_gradients_of_torch() -> None:
    run = at_stage("dih: dih", 0)
    batch = next(run.batches("main", 1))
    learner = run.member.learner
    losses = learner.losses(learner.forward(batch), run.outputs(run.stage_teacher(), batch), batch)
    total = sum(losses[1:], start=losses[0])
    parameters = list(run.member.student.parameters())
    own = gradients(total)
    for parameter, expected in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        assert (expected is None) == (parameter not in own)
        if expected is not None:
            torch.testing.assert_close(own[parameter], expected)


def test_what_these_tests_look_for_raises(monkeypatch: pytest.MonkeyPatch, walked: None) -> None:
    with FakeTensorMode():
        on_gpu = torch.empty(2, device=GPU)
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + torch.empty(2)
        with pytest.raises(RuntimeError):
            on_gpu.sum().item()
    for loss in (lambda s: s[0].mean() + torch.zeros(1), lambda s: torch.tensor(s[0].mean().item())):
        monkeypatch.setattr(AT, "distillation", lambda self, student, teacher, batch, loss=loss: loss(student.stages))
        with pytest.raises(RuntimeError):
            take_fake_step(at_stage("crd: at", 0))
