"""The recipe as the optimiser gets it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdtable.data import Batch
from kdtable.methods.base import Setting
from kdtable.methods.objective import Objective
from kdtable.methods.vanilla import Vanilla
from kdtable.models.outputs import Outputs
from kdtable.numerics.layout import fix_threads
from kdtable.recipes.recipe import Recipe
from kdtable.training.member import Member
from tests import engine


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    fix_threads()


def trained(recipe: Recipe) -> Member:
    task = engine.task(engine.image_set(train=16, test=8), recipe)
    member = engine.member("vanilla", task, None)
    setting = replace(member.method.setting, recipe=recipe)
    return Member("run", member.student, Vanilla(setting), task)


def test_milestones_reach_the_optimiser() -> None:
    recipe = Recipe(epochs=5, batch_size=16, lr=0.1, milestones=(2, 4), lr_factor=0.5)
    member, rates = trained(recipe), []
    while not member.done:
        member.begin_epoch()
        (group,) = member.optimizer.param_groups
        rates.append(group["lr"])
        for batch in member.task.batches("main", member.epoch + 1):
            member.step(batch, None)
        engine.end_epoch(member)
    expected = [0.1, 0.1, 0.05, 0.05, 0.025]
    assert rates == pytest.approx(expected)
    assert [record.lr for record in member.history] == pytest.approx(expected)


def test_the_optimisers_settings() -> None:
    recipe = Recipe(1, 16, 0.1, (), momentum=0.8, nesterov=True, weight_decay=1e-3)
    (group,) = trained(recipe).optimizer.param_groups
    names = ("momentum", "dampening", "nesterov", "weight_decay")
    assert [group[name] for name in names] == [0.8, 0, True, 1e-3]


class Slope(nn.Module):
    """Logits (w x, 0) of the mean brightness x: one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def forward(self, images: torch.Tensor, keep: frozenset[str] = frozenset()) -> Outputs:
        x = images.double().mean(dim=(1, 2, 3))
        logit = self.w * x
        return Outputs(torch.stack([logit, torch.zeros_like(logit)], dim=1))


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_sgd_with_momentum_and_weight_decay(nesterov: bool) -> None:
    recipe = Recipe(1, 2, 0.5, (), momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    student, labels = Slope(), torch.tensor([0, 1])
    shapes = Outputs(torch.zeros(1, 2))
    method = Vanilla(Setting(recipe, Objective({"ce": 2.0}), labels, 2, shapes))
    member = Member("run", student, method, engine.task())
    member.begin_epoch()
    w, velocity = student.w.detach().clone(), torch.zeros(1, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    for _ in range(6):
        images = torch.rand(2, 3, 4, 4, generator=draw, dtype=torch.float64)
        member.step(Batch(images, labels, torch.arange(2), 1), None)
        x = images.mean(dim=(1, 2, 3))
        # d CE / dw = mean of (softmax_0 - [label is 0]) x, times the term's weight
        gradient = 2.0 * ((torch.sigmoid(w * x) - (labels == 0).double()) * x).mean() + 0.01 * w
        velocity = 0.9 * velocity + gradient
        w = w - 0.5 * (gradient + 0.9 * velocity if nesterov else velocity)
        assert torch.allclose(student.w, w, rtol=1e-12, atol=0)
