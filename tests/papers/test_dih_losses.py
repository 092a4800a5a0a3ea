"""The objectives of DIH and its baselines with the settings that are resolved, written out with the sheet's numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdtable import models
from kdtable.data import Batch
from kdtable.models.outputs import Outputs
from kdtable.planning.run import Run
from tests.methods.golden_sets import batch, built, objective
from tests.methods.test_golden_dih import Saying, with_branches
from tests.papers.formulas import LABELS, ce, draw, frobenius, kl, logits, soft_ce
from tests.papers.resolving import run_of


def the_run(row: str) -> Run:
    return run_of("dih", row, "resnet110:resnet8", "cifar10")


def method_of(row: str, student: Outputs, teacher: Outputs | None) -> Any:
    """The method of a row's run, for networks with these outputs."""
    run = the_run(row)
    learner = models.build("resnet8", student.logits.shape[1]) if row == "dml" else None
    return built(row, student, teacher, run.objective, recipe=run.recipe, learner=learner)


def loss_of(row: str, student: Outputs, teacher: Outputs | None, images: Batch | None = None) -> Tensor:
    return objective(method_of(row, student, teacher), student, teacher, images or batch(LABELS))


@pytest.mark.parametrize("row", ["kd", "takd", "fitnet-2stage"])
def test_objective_of_soft_targets(row: str) -> None:
    maps = (torch.zeros(1, 2, 4, 4),) * 3
    s, t = logits(1), logits(2)
    expected = 0.9 * ce(s) + 0.1 * kl(s, t, 5)
    torch.testing.assert_close(loss_of(row, Outputs(s, stages=maps), Outputs(t, stages=maps)), expected)


@pytest.mark.parametrize("heads", [3, 4])
def test_objective_of_dih(heads: int) -> None:
    """A plain sum over the heads and the teacher's own classifier."""
    s, teachers = logits(1), [logits(2 + i) for i in range(heads + 1)]
    found = loss_of("dih", Outputs(s), with_branches(teachers[0], teachers[1:]))
    torch.testing.assert_close(found, torch.stack([0.9 * ce(s) + 0.1 * kl(s, t, 5) for t in teachers]).sum())


def test_objective_of_heads() -> None:
    heads = [logits(i) for i in range(3)]
    torch.testing.assert_close(
        loss_of("heads", with_branches(heads[0], heads), None), torch.stack([*map(ce, heads)]).sum()
    )


def test_objective_of_mhkd() -> None:
    """Two pairs of heads, on the deepest stages; the gradient reaches both sides."""
    s, s_heads = logits(1), [logits(2), logits(3)]
    t, t_heads = logits(4), [logits(5).requires_grad_(), logits(6).requires_grad_()]
    shapes = Outputs(s, stages=tuple(torch.zeros(1, 4, 8, 8) for _ in range(3)))
    method = method_of("mhkd", shapes, shapes)
    # The heads' logits in the place of the maps that they are put on.
    method.student_heads, method.teacher_heads = (nn.ModuleList(nn.Identity() for _ in range(2)) for _ in "st")
    student, teacher = Outputs(s, stages=(s, *s_heads)), Outputs(t, stages=(t, *t_heads))
    expected = 0.9 * ce(s) + 0.1 * kl(s, t, 4)
    for h_s, h_t in zip(s_heads, t_heads, strict=True):
        expected = expected + ce(h_t) + 0.5 * (0.9 * ce(h_s) + 0.1 * kl(h_s, h_t, 4))
    found = objective(method, student, teacher, batch(LABELS))
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, t_heads) for loss in (found, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("epoch", [1, 200])
def test_objective_of_tofd(epoch: int) -> None:
    """A classifier on each of three stages beside the main one; the temperature rises from 1.012 to 3.4."""
    (s, s_features), (t, t_features) = (
        ([logits(seed + i) for i in range(4)], [draw(5, width, seed=seed + 10 + i) for i in range(3)])
        for seed, width in ((0, 6), (50, 8))
    )
    student, teacher = (
        Outputs(
            listed[0],
            embedding=features[0],
            stages=(torch.zeros(1, 1, 1, 1),) * 3,
            branches=tuple(zip(listed[1:], features, strict=True))[::-1],
        )
        for listed, features in ((s, s_features), (t, t_features))
    )
    method = method_of("tofd", student, teacher)
    temperature = 1.012 if epoch == 1 else 3.4
    parts = []
    for i, link in enumerate(method.link):
        w = link.weight
        constraint = frobenius(w @ w.T - torch.eye(8)) + frobenius(w.T @ w - torch.eye(6))
        parts.append(0.05 * frobenius(s_features[i] @ w.T - t_features[i]) + 0.03 * constraint)
        parts.append(ce(s[i]) + soft_ce(s[i], t[i], temperature))
    found = objective(method, student, teacher, batch(LABELS, epoch))
    torch.testing.assert_close(found, torch.stack(parts).sum())


def test_objective_of_dml() -> None:
    """Of the student and its one peer, each of whom is a constant to the other."""
    s, peer = logits(1).requires_grad_(), logits(2).requires_grad_()
    method = method_of("dml", Outputs(s), None)
    method.peers = nn.ModuleList([Saying(peer)])
    pairs = ((s, peer.detach()), (peer, s.detach()))
    expected = torch.stack([0.9 * ce(one) + 0.1 * kl(one, other, 1) for one, other in pairs]).sum()
    found = objective(method, Outputs(s), None, batch(LABELS))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (s, peer)) for loss in (found, expected)))
